"""The patch scheduler: fills the network's batches with patches of all scans in progress, in turn. Torch-free."""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from gtvray.errors import FailureError
from gtvray.inference import Patch

Forward = Callable[[Sequence[NDArray[np.float32]]], NDArray[np.float32]]


class PatchJob(Protocol):
    """The part of a SegmentationRequest that the scheduler uses."""

    @property
    def remaining(self) -> int:
        """Patches not yet taken."""

    def take(self) -> Patch:
        """Return the next patch."""

    def put(self, number: int, logits: NDArray[np.float32]) -> None:
        """Store the logits of a patch."""


class _Entry:
    """A job, and the future that its caller awaits."""

    def __init__(self, job: PatchJob) -> None:
        self.job = job
        self.finished: asyncio.Future[None] = asyncio.get_running_loop().create_future()


class PatchScheduler:
    """Round robin over jobs: one patch of each in turn, until the batch is full.

    A small scan overtakes a large one that arrived before it, and a row of a batch stays empty only if no job has a
    patch left. Jobs are accessed by the inference thread only; the event loop plans batches and is never blocked.

    Args:
        forward: logits (b, i, j, k) of up to `batch_size` patches (c, i, j, k).
        batch_size: patches per forward pass.
    """

    def __init__(self, forward: Forward, batch_size: int) -> None:
        self._forward, self._batch_size = forward, batch_size
        self._ring: deque[_Entry] = deque()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="inference")
        self._loop_task: asyncio.Task[None] | None = None
        self._batch_began: float | None = None

    def check_progress(self, longest_s: float) -> None:
        """Check that batches are still processed.

        Raises:
            FailureError: a batch has been running for more than `longest_s`, or jobs wait and no batch is running.
        """
        stuck = self._batch_began is not None and time.monotonic() - self._batch_began > longest_s
        if stuck or (self._ring and (self._loop_task is None or self._loop_task.done())):
            raise FailureError("inference is stalled", expected=f"a batch within {longest_s:g} s")

    async def run(self, job: PatchJob) -> None:
        """Process every patch of a job; a cancelled job is in no later batch.

        Raises:
            Exception: what `forward` or the job itself raised on this job's patches.
        """
        if not job.remaining:
            return
        entry = _Entry(job)
        self._ring.append(entry)
        if self._loop_task is None or self._loop_task.done():
            self._loop_task = asyncio.create_task(self._run_batches())
        try:
            await entry.finished
        finally:
            if entry in self._ring:
                self._ring.remove(entry)

    async def _run_batches(self) -> None:
        loop = asyncio.get_running_loop()
        while rows := self._plan_batch():
            self._batch_began = time.monotonic()
            errors = await loop.run_in_executor(self._thread, self._run_batch, rows)
            self._batch_began = None
            for entry in set(rows):
                self._finish_if_done(entry, errors.get(entry))

    def _finish_if_done(self, entry: _Entry, error: Exception | None) -> None:
        if (error is None and entry.job.remaining) or entry.finished.done():
            return
        # Removed here and not by the caller, as the next batch is planned before the caller wakes up.
        self._ring.remove(entry)
        if error is None:
            entry.finished.set_result(None)
        else:
            entry.finished.set_exception(error)

    def _plan_batch(self) -> list[_Entry]:
        """The entry whose patch fills each row of the next batch."""
        left = {entry: entry.job.remaining for entry in self._ring}
        rows: list[_Entry] = []
        while len(rows) < self._batch_size and any(left.values()):
            entry = self._ring[0]
            self._ring.rotate(-1)
            if left[entry]:
                left[entry] -= 1
                rows.append(entry)
        return rows

    def _run_batch(self, rows: list[_Entry]) -> dict[_Entry, Exception]:
        """Run one batch in the inference thread.

        Returns:
            the errors, by entry. If a shared batch fails, each of its jobs is run separately, so that the patches of
            one job cannot fail another.
        """
        errors: dict[_Entry, Exception] = {}
        taken: dict[_Entry, list[Patch]] = {}
        for entry, count in Counter(rows).items():
            with _errors_of(entry, errors):
                taken[entry] = [entry.job.take() for _ in range(count)]
        logits: dict[_Entry, NDArray[np.float32]] = {}
        try:
            logits = self._forward_together(taken)
        except Exception:  # noqa: BLE001  # the separate runs find the job that caused it
            for entry, patches in taken.items():
                with _errors_of(entry, errors):
                    logits |= self._forward_together({entry: patches})
        for entry, of_entry in logits.items():
            with _errors_of(entry, errors):
                for patch, of_patch in zip(taken[entry], of_entry, strict=True):
                    entry.job.put(patch.number, of_patch)
        return errors

    def _forward_together(self, taken: dict[_Entry, list[Patch]]) -> dict[_Entry, NDArray[np.float32]]:
        channels = [patch.channels for patches in taken.values() for patch in patches]
        if not channels:
            return {}
        ends = np.cumsum([len(patches) for patches in taken.values()])
        return dict(zip(taken, np.split(self._forward(channels), ends[:-1]), strict=True))


@contextmanager
def _errors_of(entry: _Entry, errors: dict[_Entry, Exception]) -> Iterator[None]:
    """Record an exception as this entry's error."""
    try:
        yield
    except Exception as error:  # noqa: BLE001  # raised in the job's caller
        errors[entry] = error
