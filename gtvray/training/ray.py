"""`fit` on several workers with Ray Train; the driver sees the same generator of reports.

`TorchTrainer.fit()` blocks, so it runs in a thread. Reports come through a mailbox actor, and a request to stop is
honoured by the workers at the end of an epoch. Their placement group is removed only after a deadline: killing a
trial's driver, as Tune does, can leave the group behind and starve every later trial (ray-project/ray#58515).

A group that has lost a worker, a machine or its controller is restarted here and not by Ray Train: an error that a
worker reports itself, such as a full disk, would only occur again, and Ray Train's own controller may be what was lost.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray
import torch
import torch.distributed as dist
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from gtvray.config import Config
from gtvray.data import CachedCase
from gtvray.errors import GtvrayError
from gtvray.failpoints import variables
from gtvray.models import Checkpoint
from gtvray.training.checkpoints import newest_checkpoint
from gtvray.training.execution import gpus_per_worker
from gtvray.training.fit import EpochReport, fit
from gtvray.training.lost import Lost, lost, lost_error

# The mailbox answers as soon as there is a report; without one, the driver asks again after this time.
_POLL_S = 2.0
_STOP_DEADLINE_S = 60.0
# Ray's default is unlimited; a group that fails to start twice in a minute will not start.
_CONTROLLER_FAILURES = 2
_log = logging.getLogger(__name__)


class _Mailbox:
    """An actor between the workers of one group and the driver.

    The driver's request waits here until there is a report: asking ten times a second takes CPU time from workers.
    """

    def __init__(self) -> None:
        self._reports: list[EpochReport] = []
        self._groups: set[str] = set()
        self._stop = False
        self._failure: GtvrayError | None = None
        self._news = asyncio.Event()

    async def register(self, group_id: str) -> None:
        self._groups.add(group_id)

    async def put(self, report: EpochReport) -> bool:
        """Leave a report; returns whether to stop."""
        self._reports.append(report)
        self._news.set()
        return self._stop

    async def fail(self, error: GtvrayError) -> None:
        """Leave the error that ends a worker; the first one counts."""
        self._failure = self._failure or error
        self._news.set()

    async def end(self) -> None:
        """Report that the group has ended."""
        self._news.set()

    async def take(self, wait_s: float) -> tuple[list[EpochReport], GtvrayError | None]:
        """The reports that are there or arrive within some seconds, and the error that ended a worker."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._news.wait(), wait_s)
        self._news.clear()
        taken, self._reports = self._reports, []
        return taken, self._failure

    async def stop(self) -> None:
        self._stop = True

    async def groups(self) -> set[str]:
        return self._groups


@dataclass(frozen=True)
class _Job:
    config: Config
    train: Sequence[CachedCase]
    selection: Sequence[CachedCase]
    folder: Path
    resume: Path | None
    known_epoch: int
    mailbox: Any


def fit_distributed(
    config: Config,
    train: Sequence[CachedCase],
    selection: Sequence[CachedCase],
    folder: Path,
    *,
    resume: Path | None = None,
    known_epoch: int | None = None,
) -> Iterator[EpochReport]:
    """`fit` on `training.num_workers` workers of the connected cluster.

    When a worker, its machine or the group's controller is lost, or a worker hangs, a new group resumes from the
    newest checkpoint, at most `training.max_failures` times; the next report's `notes` name the reason. Closing the
    generator stops the workers at the end of their epoch.

    Args, Raises:
        as `fit`; also TrainingError when workers are lost too often or cannot be started, and ResourceError when that
        was for lack of memory.
    """
    first = last = known_epoch if known_epoch is not None else _epoch_of(folder, resume)
    notes: list[str] = []
    for failures in range(config.training.max_failures + 1):
        # A checkpoint that this call has written takes precedence over the one it started from.
        begin = resume if last == first else None
        group = _Group(_Job(config, list(train), list(selection), folder, begin, last, _mailbox()))
        try:
            for report in group.reports():
                if report.epoch > last:
                    last = report.epoch
                    yield replace(report, notes="; ".join(filter(None, [*notes, report.notes])))
                    notes = []
        except _GroupLostError as error:
            if failures == config.training.max_failures:
                raise lost_error(error.why, config, last) from error
            notes.append(f"workers restarted after epoch {last}: {error.why.reason}")
            _log.warning("%s", notes[-1])
        else:
            return
        finally:
            group.end()


class _GroupLostError(Exception):
    """A group ended, and no worker reported an error."""

    def __init__(self, why: Lost) -> None:
        super().__init__(why.reason)
        self.why = why


class _Group:
    """One group of workers."""

    def __init__(self, job: _Job) -> None:
        self._mailbox = job.mailbox
        self._outcome: dict[str, BaseException] = {}
        self._ended = threading.Event()
        self._failed = False
        arguments = (job, self._outcome, self._ended)
        self._thread = threading.Thread(target=_run, args=arguments, name="torch-trainer", daemon=True)
        self._thread.start()

    def reports(self) -> Iterator[EpochReport]:
        """Every report, until the group ends.

        Raises:
            GtvrayError: the error of a worker.
            _GroupLostError: the group ended without one.
        """
        failure = None
        alive = True
        while alive and failure is None:
            alive = not self._ended.is_set()
            taken, failure = ray.get(self._mailbox.take.remote(_POLL_S if alive else 0.0))
            yield from taken
        self._failed = failure is not None or "error" in self._outcome
        if failure is not None:
            raise failure
        if "error" in self._outcome:
            raise _GroupLostError(lost(self._outcome["error"])) from self._outcome["error"]

    def end(self) -> None:
        """Stop the workers at the end of their epoch, at once if they have failed, and free their resources."""
        if self._thread.is_alive() and not self._failed:
            ray.get(self._mailbox.stop.remote())
            self._thread.join(_STOP_DEADLINE_S)
        if self._thread.is_alive() or self._failed:
            _remove_groups(ray.get(self._mailbox.groups.remote()))
            self._thread.join(_STOP_DEADLINE_S)
        ray.kill(self._mailbox)


def _mailbox() -> Any:
    # On the driver's own machine, so that reports survive the loss of any other.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(num_cpus=0, scheduling_strategy=here)(_Mailbox).remote()


def _epoch_of(folder: Path, resume: Path | None) -> int:
    """The epoch that a training in a folder resumes from."""
    start = Checkpoint.load(resume) if resume is not None else newest_checkpoint(folder)[0]
    return 0 if start is None else int(start.meta["epoch"])


def _run(job: _Job, outcome: dict[str, BaseException], ended: threading.Event) -> None:
    training, gpus = job.config.training, gpus_per_worker(job.config)
    trainer = TorchTrainer(
        _worker,
        train_loop_config={"job": job},
        # Gradients are exchanged between GPUs; scores, means and the request to stop are tensors on the CPU.
        torch_config=TorchConfig(
            backend="cpu:gloo,cuda:nccl" if training.use_gpu else "gloo", timeout_s=training.collective_timeout_s
        ),
        scaling_config=ScalingConfig(
            num_workers=training.num_workers,
            use_gpu=training.use_gpu,
            resources_per_worker={"CPU": training.cpus_per_worker, **({"GPU": gpus} if gpus else {})},
        ),
        run_config=RunConfig(
            name=f"{job.folder.name}-{time.time_ns():x}",
            storage_path=str(job.folder / "ray-train"),
            failure_config=FailureConfig(max_failures=0, controller_failure_limit=_CONTROLLER_FAILURES),
            worker_runtime_env={"env_vars": variables()} if variables() else None,
        ),
    )
    try:
        trainer.fit()
    except BaseException as error:  # noqa: BLE001  # handed to the generator, which raises it
        outcome["error"] = error
    finally:
        ended.set()
        job.mailbox.end.remote()


def _worker(loop: dict[str, Any]) -> None:
    """Train on one worker; after each epoch all workers agree on whether to stop."""
    job: _Job = loop["job"]
    group = ray.util.get_current_placement_group()
    if group is not None:
        ray.get(job.mailbox.register.remote(group.id.hex()))
    try:
        for report in fit(
            job.config, job.train, job.selection, job.folder, resume=job.resume, known_epoch=job.known_epoch
        ):
            stop = torch.zeros(1)
            if dist.get_rank() == 0:
                stop += float(ray.get(job.mailbox.put.remote(report)))
            dist.broadcast(stop, src=0)
            if stop.item():
                return
    except GtvrayError as error:
        ray.get(job.mailbox.fail.remote(error))
        raise


def _remove_groups(group_ids: set[str]) -> None:
    from ray.util.placement_group import PlacementGroup, remove_placement_group

    for group_id in group_ids:
        remove_placement_group(PlacementGroup(ray.PlacementGroupID.from_hex(group_id)))
