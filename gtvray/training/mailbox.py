"""The actor between the workers of one group and the driver: jobs to the workers, reports to the driver.

It passes both on as bytes, and this module imports neither torch nor MONAI: the start of a group, and of the one that
replaces a lost group, does not wait for another process to import them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
from ray import cloudpickle
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from gtvray.errors import GtvrayError

if TYPE_CHECKING:
    from gtvray.config import Config
    from gtvray.data import CachedCase
    from gtvray.training.checkpoints import Start
    from gtvray.training.fit import EpochReport

# A group that has no job for this time ends and frees its resources.
IDLE_S = 60.0


@dataclass(frozen=True)
class Job:
    """One training for a group of workers; the attributes are arguments of `fit`."""

    config: Config
    train: Sequence[CachedCase]
    selection: Sequence[CachedCase]
    folder: Path
    start: Start
    known_epoch: int


@dataclass(frozen=True)
class News:
    """New reports and state of the current job, returned by one call of `take`.

    Attributes:
        reports: of the current job, in order; packed as the workers put them.
        failure: the error that ended a worker.
        is_done: whether the workers have completed the current job.
    """

    reports: list[bytes]
    failure: GtvrayError | None
    is_done: bool


class Mailbox:
    """State of one group of workers.

    `take` blocks until there is news (long polling), since polling ten times a second takes CPU time from workers.
    """

    def __init__(self) -> None:
        self._controller: Any = None
        self._job: bytes | None = None
        self._jobs = 0
        self._closed = False
        self._changed = asyncio.Condition()
        self._reports: list[bytes] = []
        self._failure: GtvrayError | None = None
        self._done = self._stop = False
        self._news = asyncio.Event()

    async def set_controller(self, actor: Any) -> None:
        """Keep the group's controller, the actor that creates its placement group."""
        self._controller = actor

    async def controller(self) -> Any:
        """The controller; None before it has started."""
        return self._controller

    async def give(self, job: bytes) -> bool:
        """Pass the next job to the workers; return False if the group accepts no more jobs."""
        async with self._changed:
            if self._closed:
                return False
            self._reports, self._done, self._stop = [], False, False
            self._job, self._jobs = job, self._jobs + 1
            self._changed.notify_all()
            return True

    async def job(self, number: int) -> bytes | None:
        """Wait for the job with a number, counted from 0, and return it; None if the worker must end.

        After some time without a job all workers end, and no further job is accepted.
        """
        async with self._changed:
            with suppress(TimeoutError):
                waiting = self._changed.wait_for(lambda: self._closed or self._jobs > number)
                await asyncio.wait_for(waiting, IDLE_S)
            if self._jobs > number:
                return self._job
            self._closed = True
            self._changed.notify_all()
            return None

    async def close(self) -> None:
        """End the workers when they ask for the next job."""
        async with self._changed:
            self._closed = True
            self._changed.notify_all()

    async def put(self, report: bytes) -> bool:
        """Store a report; return whether to stop."""
        self._reports.append(report)
        self._news.set()
        return self._stop

    async def done(self) -> None:
        """Report that the workers have completed or stopped the current job."""
        self._done = True
        self._news.set()

    async def fail(self, error: GtvrayError) -> None:
        """Store the error that ended a worker; only the first one is kept."""
        self._failure = self._failure or error
        self._news.set()

    async def end(self) -> None:
        """Report that the group has ended."""
        self._news.set()

    async def take(self, wait_s: float) -> News:
        """Return the news, waiting up to `wait_s` seconds if there is none."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._news.wait(), wait_s)
        self._news.clear()
        taken, self._reports = self._reports, []
        return News(taken, self._failure, self._done)

    async def stop(self) -> None:
        """Ask the workers to stop the current job at the end of their epoch."""
        self._stop = True


def packed(content: Job | EpochReport) -> bytes:
    """Return a job for `Mailbox.give`, or a report for `Mailbox.put`."""
    return bytes(cloudpickle.dumps(content))


def unpacked(data: bytes) -> Any:
    """Return the job or report that was packed; imports what it consists of."""
    return cloudpickle.loads(data)


def start_mailbox() -> Any:
    """Start a mailbox on the driver's own machine, so that reports survive the loss of any other."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(num_cpus=0, scheduling_strategy=here)(Mailbox).remote()
