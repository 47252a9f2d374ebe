"""The patch scheduler: order of patches, fairness, growing jobs, cancellation, and isolation of errors."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from gtvray.errors import FailureError
from gtvray.inference import Patch
from gtvray.serving.scheduler import PatchScheduler


class Numbers:
    """A job whose patches hold `first`, `first + 1`, ..."""

    def __init__(self, first: int, count: int) -> None:
        self.first, self.count = first, count
        self.taken = 0
        self.answers: list[tuple[int, float]] = []

    @property
    def remaining(self) -> int:
        return self.count - self.taken

    def take(self) -> Patch:
        self.taken += 1
        return Patch(self.taken - 1, np.full((1, 1, 1, 1), self.first + self.taken - 1, np.float32))

    def put(self, number: int, logits: NDArray[np.float32]) -> None:
        self.answers.append((number, float(logits.squeeze())))


class Doubling:
    """A forward pass that doubles its input, records every batch, and raises on the value 13."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.gate = threading.Event()
        self.gate.set()

    def __call__(self, channels: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
        assert self.gate.wait(30)
        values = [int(patch.squeeze()) for patch in channels]
        self.batches.append(values)
        if 13 in values:
            raise ValueError("thirteen")
        return np.stack([2 * patch[0] for patch in channels])


def test_every_patch_is_processed_in_order() -> None:
    forward, jobs = Doubling(), [Numbers(100, 7), Numbers(200, 1), Numbers(300, 4)]

    async def run() -> None:
        scheduler = PatchScheduler(forward, 3)
        await asyncio.gather(*(scheduler.run(job) for job in jobs))

    asyncio.run(run())
    for job in jobs:
        assert job.answers == [(n, 2.0 * (job.first + n)) for n in range(job.count)]
    assert sum(map(len, forward.batches)) == 12
    assert len(forward.batches) == 4, "no row stays empty while a job has a patch left"


class Growing(Numbers):
    """A job whose later patches are known after its first two are processed, as in localised inference."""

    def put(self, number: int, logits: NDArray[np.float32]) -> None:
        super().put(number, logits)
        if len(self.answers) == 2:
            self.count = 9


@pytest.mark.parametrize("batch_size", [1, 2, 3, 8])
def test_job_may_grow_after_its_first_patches(batch_size: int) -> None:
    forward, jobs = Doubling(), [Growing(100, 2), Numbers(200, 5), Growing(300, 2)]

    async def run() -> None:
        scheduler = PatchScheduler(forward, batch_size)
        await asyncio.gather(*(scheduler.run(job) for job in jobs))

    asyncio.run(run())
    assert [job.count for job in jobs] == [9, 5, 9]
    for job in jobs:
        assert job.answers == [(n, 2.0 * (job.first + n)) for n in range(job.count)]


def test_small_job_overtakes_large_one() -> None:
    forward, finished = Doubling(), []
    large, small = Numbers(1000, 50), Numbers(0, 3)

    async def run_one(scheduler: PatchScheduler, job: Numbers) -> None:
        await scheduler.run(job)
        finished.append(job)

    async def run() -> None:
        scheduler = PatchScheduler(forward, 2)
        first = asyncio.create_task(run_one(scheduler, large))
        while large.taken < 4:
            await asyncio.sleep(0)
        forward.gate.clear()
        second = asyncio.create_task(run_one(scheduler, small))
        await asyncio.sleep(0)
        forward.gate.set()
        await asyncio.gather(first, second)

    asyncio.run(run())
    assert finished == [small, large]
    shared = [batch for batch in forward.batches if min(batch) < 1000]
    assert [len(batch) for batch in shared] == [2, 2, 2]
    assert all(max(batch) >= 1000 for batch in shared), "the large job continues beside the small one"


def test_cancelled_job_is_in_no_later_batch() -> None:
    forward, job, other = Doubling(), Numbers(0, 1000), Numbers(5000, 5)

    async def run() -> int:
        scheduler = PatchScheduler(forward, 2)
        task = asyncio.create_task(scheduler.run(job))
        while not job.answers:
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await scheduler.run(other)
        return job.taken

    taken = asyncio.run(run())
    assert taken == job.taken < 1000
    assert len(other.answers) == 5


def test_forward_error_fails_only_the_job_that_caused_it() -> None:
    forward, bad, good = Doubling(), Numbers(10, 8), Numbers(100, 8)

    async def run() -> list[BaseException | None]:
        scheduler = PatchScheduler(forward, 4)
        return await asyncio.gather(scheduler.run(bad), scheduler.run(good), return_exceptions=True)

    failure, success = asyncio.run(run())
    assert isinstance(failure, ValueError)
    assert success is None
    assert good.answers == [(n, 2.0 * (100 + n)) for n in range(8)]


def test_error_in_a_job_fails_only_that_job() -> None:
    class Broken(Numbers):
        def put(self, number: int, logits: NDArray[np.float32]) -> None:
            raise MemoryError("out of memory")

    good = Numbers(100, 5)

    async def run() -> list[BaseException | None]:
        scheduler = PatchScheduler(Doubling(), 2)
        return await asyncio.gather(scheduler.run(Broken(0, 5)), scheduler.run(good), return_exceptions=True)

    failure, success = asyncio.run(run())
    assert isinstance(failure, MemoryError)
    assert success is None
    assert len(good.answers) == 5


def test_stalled_batch_is_detected() -> None:
    forward = Doubling()

    async def run() -> None:
        scheduler = PatchScheduler(forward, 2)
        scheduler.check_progress(0.0)
        forward.gate.clear()
        task = asyncio.create_task(scheduler.run(Numbers(0, 1)))
        await asyncio.sleep(0.01)
        scheduler.check_progress(60.0)
        with pytest.raises(FailureError, match="is stalled"):
            scheduler.check_progress(0.0)
        forward.gate.set()
        await task
        scheduler.check_progress(0.0)

    asyncio.run(run())
