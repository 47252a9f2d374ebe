"""The memory of a replica: large scans wait for each other, small ones fit beside them."""

from __future__ import annotations

import asyncio

import pytest

from gtvray.errors import TooLargeError
from gtvray.serving.replica.budget import MemoryBudget


async def hold(budget: MemoryBudget, count: int, name: str, log: list[str], until: asyncio.Event) -> None:
    async with budget.hold(count):
        log.append(name)
        await until.wait()


def test_small_scans_do_not_wait_for_large_ones() -> None:
    log: list[str] = []

    async def run() -> None:
        budget, done = MemoryBudget(1600), asyncio.Event()
        tasks = [asyncio.ensure_future(hold(budget, 600, f"large {n}", log, done)) for n in range(4)]
        tasks += [asyncio.ensure_future(hold(budget, 100, f"small {n}", log, done)) for n in range(2)]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert log == ["large 0", "large 1", "small 0", "small 1"]
        assert budget.held_bytes == 1400
        done.set()
        await asyncio.gather(*tasks)
        assert budget.held_bytes == 0

    asyncio.run(run())
    assert log[4:] == ["large 2", "large 3"], "in their order"


def test_large_scan_is_not_overtaken_by_others_that_would_fit() -> None:
    log: list[str] = []

    async def run() -> None:
        budget, first, rest = MemoryBudget(1600), asyncio.Event(), asyncio.Event()
        rest.set()
        tasks = [asyncio.ensure_future(hold(budget, 800, "first", log, first))]
        tasks += [asyncio.ensure_future(hold(budget, 1000, "second", log, rest))]
        tasks += [asyncio.ensure_future(hold(budget, 300, "third", log, rest))]
        await asyncio.sleep(0)
        first.set()
        await asyncio.gather(*tasks)

    asyncio.run(run())
    assert log == ["first", "second", "third"]


def test_scan_that_never_fits_is_refused() -> None:
    async def run() -> None:
        budget = MemoryBudget(1600)
        async with budget.hold(budget.largest_bytes):
            pass
        with pytest.raises(TooLargeError, match="too much memory"):
            async with budget.hold(budget.largest_bytes + 1):
                pass

    asyncio.run(run())


@pytest.mark.parametrize("waits", [True, False])
def test_cancelled_scan_gives_its_memory_back(waits: bool) -> None:
    log: list[str] = []

    async def run() -> None:
        budget, never, now = MemoryBudget(1600), asyncio.Event(), asyncio.Event()
        now.set()
        first = asyncio.ensure_future(hold(budget, 1000, "first", log, never))
        second = asyncio.ensure_future(hold(budget, 1000, "second", log, never))
        third = asyncio.ensure_future(hold(budget, 900, "third", log, now))
        await asyncio.sleep(0)
        for task in [second, first] if waits else [first, second]:
            task.cancel()
            if not waits:
                await asyncio.sleep(0)
        await asyncio.gather(first, second, return_exceptions=True)
        await third
        assert budget.held_bytes == 0

    asyncio.run(run())
    assert log[-1] == "third"
