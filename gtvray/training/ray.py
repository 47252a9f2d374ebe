"""Ray Train glue: the same `fit` on several workers, seen from the driver as the same generator of reports.

`TorchTrainer.fit()` blocks, so it runs in a thread; reports come through a mailbox actor, and a stop is a message that
workers honour at the end of an epoch. Only past a deadline is their placement group taken away: killing a trial's
driver, as Tune does, can leave the group behind and starve every trial after it (ray-project/ray#58515).
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import torch
import torch.distributed as dist
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

from gtvray.config import Config
from gtvray.data import CachedCase
from gtvray.errors import TrainingError
from gtvray.training.fit import EpochReport, fit

_POLL_S = 0.1
_STOP_DEADLINE_S = 60.0
# Ray's default is to try for ever; a group that cannot start twice in a minute will not start.
_CONTROLLER_FAILURES = 2


class _Mailbox:
    """An actor between the workers and the driver."""

    def __init__(self) -> None:
        self._reports: list[EpochReport] = []
        self._groups: set[str] = set()
        self._stop = False

    def register(self, group_id: str) -> None:
        self._groups.add(group_id)

    def put(self, report: EpochReport) -> bool:
        """Leave a report; the answer says whether to stop."""
        self._reports.append(report)
        return self._stop

    def take(self) -> list[EpochReport]:
        taken, self._reports = self._reports, []
        return taken

    def stop(self) -> None:
        self._stop = True

    def groups(self) -> set[str]:
        return self._groups


@dataclass(frozen=True)
class _Job:
    config: Config
    train: Sequence[CachedCase]
    selection: Sequence[CachedCase]
    folder: Path
    resume: Path | None
    mailbox: Any


def fit_distributed(
    config: Config,
    train: Sequence[CachedCase],
    selection: Sequence[CachedCase],
    folder: Path,
    *,
    resume: Path | None = None,
) -> Iterator[EpochReport]:
    """`fit` on `training.num_workers` workers of the connected cluster.

    Closing the generator stops the workers at the end of their epoch.

    Args, Raises:
        as `fit`; TrainingError as well when the workers fail or cannot be started.
    """
    mailbox = ray.remote(num_cpus=0)(_Mailbox).remote()
    job = _Job(config, list(train), list(selection), folder, resume, mailbox)
    outcome: dict[str, BaseException] = {}
    thread = threading.Thread(target=_run, args=(job, outcome), name="torch-trainer", daemon=True)
    thread.start()
    last = 0
    try:
        while True:
            alive = thread.is_alive()
            for report in ray.get(mailbox.take.remote()):
                # A restarted group runs the epoch it died in again.
                if report.epoch > last:
                    last = report.epoch
                    yield report
            if not alive:
                break
            time.sleep(_POLL_S)
        if "error" in outcome:
            raise _explain(outcome["error"], config)
    finally:
        _end(thread, mailbox)


def _run(job: _Job, outcome: dict[str, BaseException]) -> None:
    training = job.config.training
    trainer = TorchTrainer(
        _worker,
        train_loop_config={"job": job},
        torch_config=TorchConfig(backend="nccl" if training.use_gpu else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=training.num_workers,
            use_gpu=training.use_gpu,
            resources_per_worker={"CPU": training.cpus_per_worker, **({"GPU": 1} if training.use_gpu else {})},
        ),
        run_config=RunConfig(
            name=f"{job.folder.name}-{time.time_ns():x}",
            storage_path=str(job.folder / "ray-train"),
            failure_config=FailureConfig(max_failures=1, controller_failure_limit=_CONTROLLER_FAILURES),
        ),
    )
    try:
        trainer.fit()
    except BaseException as error:  # noqa: BLE001  # handed to the generator, which raises it
        outcome["error"] = error


def _worker(loop: dict[str, Any]) -> None:
    """One worker's whole life; every worker takes part in every epoch's decision to go on."""
    job: _Job = loop["job"]
    os.environ.setdefault("OMP_NUM_THREADS", str(job.config.training.cpus_per_worker))
    group = ray.util.get_current_placement_group()
    if group is not None:
        job.mailbox.register.remote(group.id.hex())
    for report in fit(job.config, job.train, job.selection, job.folder, resume=job.resume):
        stop = torch.zeros(1)
        if dist.get_rank() == 0:
            stop += float(ray.get(job.mailbox.put.remote(report)))
        dist.broadcast(stop, src=0)
        if stop.item():
            return


def _end(thread: threading.Thread, mailbox: Any) -> None:
    if thread.is_alive():
        ray.get(mailbox.stop.remote())
        thread.join(_STOP_DEADLINE_S)
    if thread.is_alive():
        _remove_groups(ray.get(mailbox.groups.remote()))
        thread.join(_STOP_DEADLINE_S)
    ray.kill(mailbox)


def _remove_groups(group_ids: set[str]) -> None:
    from ray.util.placement_group import PlacementGroup, remove_placement_group

    for group_id in group_ids:
        remove_placement_group(PlacementGroup(ray.PlacementGroupID.from_hex(group_id)))


def _explain(error: BaseException, config: Config) -> TrainingError:
    cause = getattr(error, "worker_failures", None)
    first = next(iter(cause.values())) if cause else error
    if isinstance(first, TrainingError):
        return first
    workers = config.training.num_workers
    return TrainingError(
        "training on several workers failed",
        where=f"{workers} workers",
        found=str(first).strip().splitlines()[-1] if str(first).strip() else type(first).__name__,
        do="see the worker's log under Ray's session folder; training.num_workers=1 runs without Ray Train",
    )
