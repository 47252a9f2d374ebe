"""Tasks on the connected cluster with the resources of a training's worker."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from numpy.typing import NDArray
from ray.exceptions import RayTaskError
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from gtvray.config import Config
from gtvray.data import CachedCase
from gtvray.errors import GtvrayError
from gtvray.inference import Predictor
from gtvray.models import Bundle
from gtvray.runtime import SILENT, Cluster, ProgressReporter, ResourcePlan, plan_trials, reserved
from gtvray.training import device_bytes, gpus_per_worker, host_bytes, kept_checkpoint, training_device

_POLL_S = 1.0


def on_cluster(function: Any, work: Sequence[tuple[Any, ...]], config: Config, report: Callable[[int], None]) -> Any:
    """Run a function on the cluster once per item, with the CPUs, GPUs and memory of one worker of the training.

    Args:
        function: called with the arguments of an item.
        work: arguments by item.
        config: settings of the training.
        report: called with the number of finished items.

    Returns:
        the results, in the order of the items.

    Raises:
        GtvrayError: the first error of an item; the others are cancelled.
    """
    resources = {"num_cpus": config.training.cpus_per_worker, "num_gpus": gpus_per_worker(config)}
    task = ray.remote(**resources, memory=host_bytes(config))(function)
    answers = [task.remote(*piece) for piece in work]
    left = list(answers)
    try:
        while left:
            ready, left = ray.wait(left, timeout=_POLL_S)
            ray.get(ready)
            report(len(answers) - len(left))
        return list(ray.get(answers))
    except RayTaskError as error:
        raise (error.cause if isinstance(error.cause, GtvrayError) else error) from None
    finally:
        for answer in left:
            ray.cancel(answer, force=True)


def keep(best: Path, config: Config, cases: Sequence[CachedCase]) -> tuple[Path, NDArray[np.float64]]:
    """Run `kept_checkpoint` with the threads and the device of the training."""
    torch.set_num_threads(config.training.cpus_per_worker)
    return kept_checkpoint(best, config, cases, training_device(config))


def predictor_on_worker(bundle: Bundle, config: Config) -> Predictor:
    """Return a predictor with the threads and device of the training, or on the CPU if the backend requires it."""
    device = training_device(config).type if bundle.inference.runs_on_gpu else "cpu"
    return Predictor(bundle, threads=config.training.cpus_per_worker, device=device)


def plan_on(
    cluster: Cluster, config: Config, wanted: int | None = None, memory_bytes: int | None = None
) -> ResourcePlan:
    """Determine how many trainings run at once on a cluster, with the memory that each is estimated to take.

    Args:
        cluster: the connected cluster.
        config: settings of a training.
        wanted: maximum number of trainings at once; None for as many as fit.
        memory_bytes: memory of the largest training, if they differ.

    Raises:
        ResourceError: a training does not fit.
    """
    needed = host_bytes(config) if memory_bytes is None else memory_bytes
    return plan_trials(config.training, cluster.nodes, wanted, memory_bytes=needed, growth=cluster.growth)


def worker_memory_bytes(config: Config, cluster: Cluster, show: ProgressReporter = SILENT) -> int:
    """Return the memory of the device of a worker of the training on the connected cluster, in bytes.

    The resources of a whole training are reserved for this, so that the nodes that an autoscaler must start are running
    when the first training begins.

    Raises:
        ResourceError: no such worker fits on the cluster, its resources are not free within
            `training.resources_wait_s`, or torch finds no GPU there.
    """
    plan = plan_on(cluster, config)
    if cluster.is_local and not config.training.use_gpu:
        # Workers run on this machine, so none has to be started.
        return device_bytes(config)
    with reserved(plan.needs, plan.workers, config.training.resources_wait_s, show.waiting) as group:
        show.waiting(None)
        here = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=0)
        task = ray.remote(num_cpus=plan.needs.cpus, num_gpus=plan.needs.gpus, scheduling_strategy=here)(device_bytes)
        try:
            return int(ray.get(task.remote(config)))
        except RayTaskError as error:
            raise (error.cause if isinstance(error.cause, GtvrayError) else error) from None
