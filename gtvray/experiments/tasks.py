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

from gtvray.config import Config
from gtvray.data import CachedCase
from gtvray.errors import GtvrayError
from gtvray.runtime import Cluster, plan_trials
from gtvray.training import device_bytes, gpus_per_worker, kept_checkpoint, training_device

_POLL_S = 1.0


def on_cluster(function: Any, work: Sequence[tuple[Any, ...]], config: Config, report: Callable[[int], None]) -> Any:
    """Run a function on the cluster once per item, with the CPUs and GPUs of one worker of the training.

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
    """Run `kept_checkpoint` with the threads and the device of the training."""
    torch.set_num_threads(config.training.cpus_per_worker)
    return kept_checkpoint(best, config, cases, training_device(config))


def worker_memory_bytes(config: Config, cluster: Cluster) -> int:
    """Return the memory of the device of a worker of the training on the connected cluster, in bytes.

    Raises:
        ResourceError: no such worker fits on the cluster, or torch finds no GPU there.
    """
    if cluster.is_local and not config.training.use_gpu:
        # Workers run on this machine, so none has to be started.
        return device_bytes(config)
    plan_trials(config.training, cluster.cpus, cluster.gpus, None)
    (found,) = on_cluster(device_bytes, [(config,)], config, lambda _: None)
    return int(found)
