"""The patch scheduler: shares the networks' batches fairly among the scans in progress. Torch-free.

Deficit round robin (Shreedhar and Varghese 1996, doi:10.1109/90.502236) over the seconds that patches take, with the
list of new flows of FQ-CoDel (RFC 8290, section 4.2): a new job gets one batch before those that have had one. Ageing:
a job that has not been served for a long time comes first, so that new arrivals cannot starve it.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from opentelemetry.trace import get_current_span

from gtvray.errors import DeviceLostError, FailureError
from gtvray.inference import Patch
from gtvray.serving.tracing import NO_TRACES, Tracing

Forward = Callable[[Sequence[NDArray[np.float32]]], NDArray[np.float32]]

OnBatch = Callable[[int, int, float, float], None]

# A job that has had no patch for this long comes before all others.
AGEING_S = 30.0
# Weight of the latest batch in the moving average of the time of a batch.
_NEWEST_SHARE = 0.2


class PatchJob(Protocol):
    """The part of a SegmentationRequest that the scheduler uses."""

    @property
    def remaining(self) -> int:
        """Patches not yet taken."""

    def take(self) -> Patch:
        """Return the next patch."""

    def put(self, number: int, logits: NDArray[np.float32]) -> None:
        """Store the logits of a patch."""


class Network:
    """A network that runs patches in batches.

    Args:
        forward: logits (b, i, j, k) of up to `batch_size` patches (c, i, j, k).
        batch_size: patches per forward pass.

    Attributes:
        forward, batch_size: as given.
        batch_s: moving average of the seconds of a batch, which do not depend on how many of its rows are filled.
    """

    def __init__(self, forward: Forward, batch_size: int) -> None:
        self.forward, self.batch_size = forward, batch_size
        self.batch_s = 1.0
        self._measured = False

    @property
    def patch_s(self) -> float:
        """Seconds of a full batch, divided by its number of patches."""
        return self.batch_s / self.batch_size

    def record(self, batch_s: float) -> None:
        """Record the seconds of a batch."""
        share = _NEWEST_SHARE if self._measured else 1.0
        self.batch_s += share * (max(batch_s, 1e-6) - self.batch_s)
        self._measured = True


class _Entry:
    """A job with its deficit, and the future that its caller awaits."""

    def __init__(self, job: PatchJob, network: Network) -> None:
        self.job, self.network = job, network
        # A new job may take a full batch; the deficit is set to that when its first batch is planned.
        self.deficit_s, self.span = math.inf, get_current_span()
        self.served_at = time.monotonic()
        self.finished: asyncio.Future[None] = asyncio.get_running_loop().create_future()


class PatchScheduler:
    """Share batches among jobs by the seconds that their patches take.

    A small scan overtakes a large one that arrived before it, and a row of a batch stays empty only if no job has a
    patch left for that network. Patches are taken and stored by the inference thread only; the event loop plans
    batches and is never blocked.

    Args:
        ageing_s: seconds without a patch after which a job comes before all others.
        on_batch: called after each batch with its filled rows, all rows, its seconds, and `queued_s`.
        tracing: receives a span for each batch within the span of each job that shared it.
    """

    def __init__(
        self, ageing_s: float = AGEING_S, on_batch: OnBatch = lambda *_: None, tracing: Tracing = NO_TRACES
    ) -> None:
        self._ageing_s, self._on_batch, self._tracing = ageing_s, on_batch, tracing
        self._new: deque[_Entry] = deque()
        self._old: deque[_Entry] = deque()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="inference")
        self._loop_task: asyncio.Task[None] | None = None
        self._batch_began: float | None = None
        self._lost: DeviceLostError | None = None

    @property
    def queued_s(self) -> float:
        """Estimated seconds to process the patches that are known and not yet taken."""
        return sum(entry.job.remaining * entry.network.patch_s for entry in self._entries)

    def check_progress(self, longest_s: float) -> None:
        """Check that batches are still processed.

        Raises:
            DeviceLostError: the GPU has failed, so every batch will.
            FailureError: a batch has been running for more than `longest_s`, or jobs wait and no batch is running.
        """
        if self._lost is not None:
            raise self._lost
        stuck = self._batch_began is not None and time.monotonic() - self._batch_began > longest_s
        if stuck or (self._entries and (self._loop_task is None or self._loop_task.done())):
            raise FailureError("inference is stalled", expected=f"a batch within {longest_s:g} s")

    async def run(self, job: PatchJob, network: Network) -> None:
        """Process every patch of a job; a cancelled job is dropped from later batches.

        Raises:
            Exception: what the network or the job itself raised on this job's patches.
        """
        if not job.remaining:
            return
        entry = _Entry(job, network)
        self._new.append(entry)
        if self._loop_task is None or self._loop_task.done():
            self._loop_task = asyncio.create_task(self._run_batches())
        try:
            await entry.finished
        finally:
            self._remove(entry)

    @property
    def _entries(self) -> list[_Entry]:
        return [*self._new, *self._old]

    def _remove(self, entry: _Entry) -> None:
        for queue in (self._new, self._old):
            if entry in queue:
                queue.remove(entry)

    async def _run_batches(self) -> None:
        loop = asyncio.get_running_loop()
        while rows := self._plan_batch():
            self._batch_began, began_ns = time.monotonic(), time.time_ns()
            errors = await loop.run_in_executor(self._thread, self._run_batch, rows)
            network, batch_s = rows[0].network, time.monotonic() - self._batch_began
            self._batch_began = None
            if not errors:
                network.record(batch_s)
            self._on_batch(len(rows), network.batch_size, batch_s, self.queued_s)
            lost = (error for error in errors.values() if isinstance(error, DeviceLostError))
            self._lost = next(lost, self._lost)
            for entry, count in Counter(rows).items():
                known = {"gtvray.patches": count, "gtvray.rows": len(rows), "gtvray.batch_size": network.batch_size}
                self._tracing.add("batch", entry.span, began_ns, known)
                self._finish_if_done(entry, errors.get(entry))

    def _finish_if_done(self, entry: _Entry, error: Exception | None) -> None:
        if (error is None and entry.job.remaining) or entry.finished.done():
            return
        # Removed here and not by the caller, as the next batch is planned before the caller wakes up.
        self._remove(entry)
        if error is None:
            entry.finished.set_result(None)
        else:
            entry.finished.set_exception(error)

    def _plan_batch(self) -> list[_Entry]:
        """Return the entry whose patch fills each row of the next batch; all rows belong to one network."""
        left = {entry: entry.job.remaining for entry in self._entries if entry.job.remaining}
        rows: list[_Entry] = []
        quantum_s = max((entry.network.batch_s for entry in left), default=0.0)
        for entry in left:
            # The time of a batch varies: limit the deficit of a job to that of one batch, positive or negative.
            most_s = entry.network.batch_s if entry.deficit_s == math.inf else quantum_s
            entry.deficit_s = min(most_s, max(-quantum_s, entry.deficit_s))
        while left and (not rows or len(rows) < rows[0].network.batch_size):
            entry = self._next(left, quantum_s)
            if not rows:
                left = {each: count for each, count in left.items() if each.network is entry.network}
            rows.append(entry)
            entry.deficit_s -= entry.network.patch_s
            entry.served_at = time.monotonic()
            left[entry] -= 1
            if not left[entry]:
                del left[entry]
        return rows

    def _next(self, left: dict[_Entry, int], quantum_s: float) -> _Entry:
        """Return the entry that is served next, of those with patches left."""
        longest = min(left, key=lambda entry: entry.served_at)
        if time.monotonic() - longest.served_at > self._ageing_s:
            return longest
        while waiting := [entry for entry in self._new if entry in left]:
            entry = waiting[0]
            if entry.deficit_s > 0:
                return entry
            self._new.remove(entry)
            self._old.append(entry)
        while True:
            entry = next(entry for entry in self._old if entry in left)
            if entry.deficit_s > 0:
                return entry
            entry.deficit_s += quantum_s
            self._old.remove(entry)
            self._old.append(entry)

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
            logits = _forward_together(rows[0].network, taken)
        except Exception:  # noqa: BLE001  # the separate runs find the job that caused it
            for entry, patches in taken.items():
                with _errors_of(entry, errors):
                    logits |= _forward_together(entry.network, {entry: patches})
        for entry, of_entry in logits.items():
            with _errors_of(entry, errors):
                for patch, of_patch in zip(taken[entry], of_entry, strict=True):
                    entry.job.put(patch.number, of_patch)
        return errors


def _forward_together(network: Network, taken: dict[_Entry, list[Patch]]) -> dict[_Entry, NDArray[np.float32]]:
    channels = [patch.channels for patches in taken.values() for patch in patches]
    if not channels:
        return {}
    ends = np.cumsum([len(patches) for patches in taken.values()])
    return dict(zip(taken, np.split(network.forward(channels), ends[:-1]), strict=True))


@contextmanager
def _errors_of(entry: _Entry, errors: dict[_Entry, Exception]) -> Iterator[None]:
    """Record an exception as this entry's error."""
    try:
        yield
    except Exception as error:  # noqa: BLE001  # raised in the job's caller
        errors[entry] = error
