"""Many scans, one network: each batch is dealt out in turn among the scans under way. Torch-free."""

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
    """What the scheduler needs of a SegmentationRequest."""

    @property
    def remaining(self) -> int:
        """Patches not handed out."""

    def take(self) -> Patch:
        """The next patch."""

    def put(self, number: int, logits: NDArray[np.float32]) -> None:
        """Its answer."""


class _Entry:
    """A job and the future its owner waits on."""

    def __init__(self, job: PatchJob) -> None:
        self.job = job
        self.finished: asyncio.Future[None] = asyncio.get_running_loop().create_future()


class PatchScheduler:
    """Round robin over jobs, one patch each a turn, until the batch is full.

    A small scan overtakes a large one that came before it, and an empty row is left only when no job has a patch for
    it. Jobs are touched by the one inference thread only; the event loop plans, and is never held up.

    Args:
        forward: logits (b, i, j, k) of up to `batch_size` patches (c, i, j, k).
        batch_size: patches a call.
    """

    def __init__(self, forward: Forward, batch_size: int) -> None:
        self._forward, self._batch_size = forward, batch_size
        self._ring: deque[_Entry] = deque()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="inference")
        self._pump: asyncio.Task[None] | None = None
        self._batch_began: float | None = None

    def check(self, longest_s: float) -> None:
        """Whether batches still run.

        Raises:
            FailureError: one has been running for more than `longest_s`, or jobs wait and nothing runs.
        """
        stuck = self._batch_began is not None and time.monotonic() - self._batch_began > longest_s
        if stuck or (self._ring and (self._pump is None or self._pump.done())):
            raise FailureError("inference does not move on", expected=f"a batch within {longest_s:g} s")

    async def run(self, job: PatchJob) -> None:
        """Answer every patch of a job; if the caller is cancelled, the job is in no later batch.

        Raises:
            whatever `forward`, or the job itself, raised on this job's patches.
        """
        if not job.remaining:
            return
        entry = _Entry(job)
        self._ring.append(entry)
        if self._pump is None or self._pump.done():
            self._pump = asyncio.create_task(self._run_batches())
        try:
            await entry.finished
        finally:
            if entry in self._ring:
                self._ring.remove(entry)

    async def _run_batches(self) -> None:
        loop = asyncio.get_running_loop()
        while picks := self._pick():
            self._batch_began = time.monotonic()
            errors = await loop.run_in_executor(self._thread, self._answer, picks)
            self._batch_began = None
            for entry in set(picks):
                self._settle(entry, errors.get(entry))

    def _settle(self, entry: _Entry, error: Exception | None) -> None:
        if (error is None and entry.job.remaining) or entry.finished.done():
            return
        # Out at once: the next batch is planned before the owner wakes.
        self._ring.remove(entry)
        if error is None:
            entry.finished.set_result(None)
        else:
            entry.finished.set_exception(error)

    def _pick(self) -> list[_Entry]:
        """Whose patch fills each row of the next batch."""
        left = {entry: entry.job.remaining for entry in self._ring}
        picks: list[_Entry] = []
        while len(picks) < self._batch_size and any(left.values()):
            entry = self._ring[0]
            self._ring.rotate(-1)
            if left[entry]:
                left[entry] -= 1
                picks.append(entry)
        return picks

    def _answer(self, picks: list[_Entry]) -> dict[_Entry, Exception]:
        """Run one batch in the inference thread.

        Returns:
            the errors, by job. When a shared batch fails, each of its jobs is tried alone, so that one job's
            patches cannot fail another's.
        """
        errors: dict[_Entry, Exception] = {}
        taken: dict[_Entry, list[Patch]] = {}
        for entry, count in Counter(picks).items():
            with _blamed_on(entry, errors):
                taken[entry] = [entry.job.take() for _ in range(count)]
        answers: dict[_Entry, NDArray[np.float32]] = {}
        try:
            answers = self._forward_together(taken)
        except Exception:  # noqa: BLE001  # whose fault it was is found next
            for entry, patches in taken.items():
                with _blamed_on(entry, errors):
                    answers |= self._forward_together({entry: patches})
        for entry, answered in answers.items():
            with _blamed_on(entry, errors):
                for patch, logits in zip(taken[entry], answered, strict=True):
                    entry.job.put(patch.number, logits)
        return errors

    def _forward_together(self, taken: dict[_Entry, list[Patch]]) -> dict[_Entry, NDArray[np.float32]]:
        channels = [patch.channels for patches in taken.values() for patch in patches]
        if not channels:
            return {}
        ends = np.cumsum([len(patches) for patches in taken.values()])
        return dict(zip(taken, np.split(self._forward(channels), ends[:-1]), strict=True))


@contextmanager
def _blamed_on(entry: _Entry, errors: dict[_Entry, Exception]) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # noqa: BLE001  # goes to the job's owner
        errors[entry] = error
