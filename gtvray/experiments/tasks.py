"""Work on the connected cluster with a training's own resources: a task for each piece."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from numpy.typing import NDArray
from ray.exceptions import RayTaskError

from gtvray.config import Config
from gtvray.data import CachedCase
from gtvray.errors import GtvrayError
from gtvray.runtime import Cluster, plan_trials
from gtvray.training import device_bytes, gpus_per_worker, kept_checkpoint, training_device

_POLL_S = 1.0


def on_cluster(function: Any, work: Sequence[tuple[Any, ...]], config: Config, report: Callable[[int], None]) -> Any:
    """A task for each piece of work, with the CPUs and the GPU of one of the training's workers.

    Args:
        function: takes a piece of work.
        work: arguments, piece by piece.
        config: of the training.
        report: told how many pieces are done.

    Returns:
        the answers, in the order of the work.

    Raises:
        GtvrayError: the first that a piece raised; it ends all of them.
    """
    task = ray.remote(num_cpus=config.training.cpus_per_worker, num_gpus=gpus_per_worker(config))(function)
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
    """A piece of work: `kept_checkpoint` with the training's threads and device."""
    torch.set_num_threads(config.training.cpus_per_worker)
    return kept_checkpoint(best, config, cases, training_device(config))


def worker_memory_bytes(config: Config, cluster: Cluster) -> int:
    """Memory of the device that a worker of a training has on the connected cluster.

    Raises:
        ResourceError: the cluster has no such worker, or torch sees no GPU there.
    """
    if cluster.is_local and not config.training.use_gpu:
        # Workers are on this machine: no need to start one to ask.
        return device_bytes(config)
    plan_trials(config.training, cluster.cpus, cluster.gpus, None)
    (found,) = on_cluster(device_bytes, [(config,)], config, lambda _: None)
    return int(found)
