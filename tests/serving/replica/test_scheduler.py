"""The patch scheduler: order of patches, fairness, growing jobs, cancellation, and isolation of errors."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from itertools import islice

import numpy as np
import pytest
from numpy.typing import NDArray

from gtvray.errors import DeviceLostError, FailureError
from gtvray.inference import Patch
from gtvray.serving.replica.scheduler import Network, PatchScheduler


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


class _Scheduler(PatchScheduler):
    """A scheduler of one network."""

    def __init__(self, forward: Doubling, batch_size: int) -> None:
        super().__init__()
        self.network = Network(forward, batch_size)

    async def run(self, job: Numbers, network: Network | None = None) -> None:
        await super().run(job, network or self.network)


def test_every_patch_is_processed_in_order() -> None:
    forward, jobs = Doubling(), [Numbers(100, 7), Numbers(200, 1), Numbers(300, 4)]

    async def run() -> None:
        scheduler = _Scheduler(forward, 3)
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
        scheduler = _Scheduler(forward, batch_size)
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
        scheduler = _Scheduler(forward, 2)
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
    first = next(n for n, batch in enumerate(forward.batches) if min(batch) < 1000)
    assert forward.batches[first] == [0, 1], "a new job gets one batch before those that have had one"
    assert all(len(batch) == 2 for batch in forward.batches[:-1]), "no row stays empty"
    assert max(forward.batches[first + 1]) >= 1000, "then the large job has its turn"


class Clock:
    """Networks whose batches take a stated time, as the scheduler counts them."""

    def __init__(self, **batch_s: float) -> None:
        self.spent = dict.fromkeys(batch_s, 0.0)
        self.batch_s = batch_s
        self.order: list[str] = []

    def network(self, name: str, batch_size: int) -> Network:
        def forward(channels: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
            self.spent[name] += self.batch_s[name]
            self.order.append(name)
            return np.stack([patch[0] for patch in channels])

        network = Network(forward, batch_size)
        network.record(self.batch_s[name])
        network.record = lambda batch_s: None  # type: ignore[method-assign]
        return network


def test_seconds_are_shared_and_not_patches() -> None:
    clock = Clock(slow=1.0, fast=0.1)
    slow, fast = clock.network("slow", 1), clock.network("fast", 1)
    long, short = Numbers(0, 40), Numbers(1000, 200)

    async def run() -> None:
        scheduler = PatchScheduler()
        await asyncio.wait(
            {asyncio.ensure_future(scheduler.run(long, slow)), asyncio.ensure_future(scheduler.run(short, fast))},
            return_when=asyncio.FIRST_COMPLETED,
        )

    asyncio.run(run())
    assert short.taken == 200, "a tenth of the time a patch, and ten times as many"
    assert 15 <= clock.spent["slow"] <= 25


@pytest.mark.parametrize("ageing_s", [0.0, 1000.0])
def test_stream_of_new_jobs_cannot_hold_up_one_that_has_waited_for_long(ageing_s: float) -> None:
    batches: list[int] = []
    old, arrivals = Numbers(1000, 3), iter(range(30))

    async def run() -> None:
        loop, tasks = asyncio.get_running_loop(), []

        def forward(channels: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
            batches.append(int(channels[0].squeeze()))
            # With every batch another job arrives, before the next is planned.
            for number in islice(arrivals, 1):
                loop.call_soon_threadsafe(add, number)
            return np.stack([patch[0] for patch in channels])

        scheduler, network = PatchScheduler(ageing_s), Network(forward, 1)

        def add(number: int) -> None:
            tasks.append(asyncio.ensure_future(scheduler.run(Numbers(number, 1), network)))

        await scheduler.run(old, network)
        while len(tasks) < 30:
            await asyncio.sleep(0.001)
        await asyncio.gather(*tasks)

    asyncio.run(run())
    assert len(batches) == 33
    assert (batches.index(1002) < 10) == (ageing_s == 0.0)


def test_each_batch_has_patches_of_one_network() -> None:
    first, second = Doubling(), Doubling()

    async def run() -> None:
        scheduler = PatchScheduler()
        one, other = Network(first, 4), Network(second, 2)
        await asyncio.gather(
            *(scheduler.run(Numbers(100 * n, 5), one if n % 2 else other) for n in range(1, 6)),
        )

    asyncio.run(run())
    assert {value // 100 for batch in first.batches for value in batch} == {1, 3, 5}
    assert {value // 100 for batch in second.batches for value in batch} == {2, 4}
    assert sum(map(len, first.batches)) == 15
    assert len(first.batches) == 4, "rows are filled with patches of other jobs"


def test_cancelled_job_is_in_no_later_batch() -> None:
    forward, job, other = Doubling(), Numbers(0, 1000), Numbers(5000, 5)

    async def run() -> int:
        scheduler = _Scheduler(forward, 2)
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
        scheduler = _Scheduler(forward, 4)
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
        scheduler = _Scheduler(Doubling(), 2)
        return await asyncio.gather(scheduler.run(Broken(0, 5)), scheduler.run(good), return_exceptions=True)

    failure, success = asyncio.run(run())
    assert isinstance(failure, MemoryError)
    assert success is None
    assert len(good.answers) == 5


def test_stalled_batch_is_detected() -> None:
    forward = Doubling()

    async def run() -> None:
        scheduler = _Scheduler(forward, 2)
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


def test_a_failed_gpu_makes_the_replica_unhealthy() -> None:
    """Otherwise it would answer every later scan with the same error, and never be replaced."""
    lost = DeviceLostError("the GPU has failed", found="CUDA error: an illegal memory access was encountered")

    def forward(_: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
        raise lost

    async def run() -> None:
        scheduler = PatchScheduler()
        scheduler.check_progress(1.0)
        with pytest.raises(DeviceLostError):
            await scheduler.run(Numbers(0, 2), Network(forward, 1))
        with pytest.raises(DeviceLostError):
            scheduler.check_progress(1.0)

    asyncio.run(run())
