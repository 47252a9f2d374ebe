"""From a spooled scan to its mask: replicas that die, the time limit, capacity, and clients that disconnect.

The replica is an object of this process that reads the scan and writes the mask as a real one does.
"""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path
from typing import Any

import pytest
from ray.exceptions import RayActorError

from gtvray.config import ServingConfig
from gtvray.errors import BusyError, ClientLimitError, DataError, DeadlineError
from gtvray.serving.arguments import AppArguments
from gtvray.serving.gateway.segmenter import Segmenter
from gtvray.serving.replica.quarantine import Journal
from gtvray.serving.transfer.spool import Body, Spool
from gtvray.serving.transfer.stream import BodyStream
from gtvray.serving.transfer.work import Work
from gtvray.serving.versions.served import Served

from ..local_api import Behaviour, Replica


class Bench:
    """A segmenter with its spool."""

    def __init__(self, folder: Path, behaviour: Behaviour, **settings: Any) -> None:
        folder.mkdir(exist_ok=True)
        args = AppArguments(serving=ServingConfig(**settings))
        self.spool, self.replica = Spool(folder, 1 << 20, 1 << 20), Replica(behaviour)
        self.served = Served(args, self.replica)
        self.segmenter = Segmenter(args, self.spool, BodyStream(), "node")
        self._folder = folder

    def body(self, content: bytes) -> Body:
        path = self._folder / content.decode()
        path.write_bytes(content)
        return Body(path, len(content), hashlib.sha256(content).hexdigest())

    async def segment(self, content: bytes, **options: Any) -> bytes:
        return (await self.segmenter.segment(self.served, self.body(content), "r", **options)).mask_gz


async def at_once(work: Work, content: bytes) -> None: ...


def test_mask_comes_from_a_file_that_is_gone_afterwards(tmp_path: Path) -> None:
    bench = Bench(tmp_path, at_once)
    assert asyncio.run(bench.segment(b"scan")) == b"nacs"
    assert [path.name for path in bench.spool.folder.iterdir()] == ["lock"]


def test_scan_that_kills_two_replicas_is_refused_and_the_others_complete(tmp_path: Path) -> None:
    """All scans on a replica are lost when it dies."""
    together = asyncio.Event()

    async def die_of_bad(work: Work, content: bytes) -> None:
        with Journal(work.journal) as journal:
            if content.startswith(b"waiting"):
                journal.wait()
            else:
                journal.write("patch 3" if content == b"bad" else "scan")
            if content == b"bad":
                together.set()
                raise RayActorError
            if not together.is_set():
                await together.wait()
                raise RayActorError

    async def run() -> list[Any]:
        bench = Bench(tmp_path, die_of_bad)
        names = [b"active-1", b"active-2", b"waiting-1", b"waiting-2", b"bad"]
        answers = await asyncio.gather(*(bench.segment(name) for name in names), return_exceptions=True)
        calls = bench.replica.calls
        with pytest.raises(DataError, match="crashes the process of the model"):
            await bench.segment(b"bad")
        assert bench.replica.calls == calls, "it is not tried again"
        return answers

    *others, bad = asyncio.run(run())
    assert others == [b"1-evitca", b"2-evitca", b"1-gnitiaw", b"2-gnitiaw"]
    assert isinstance(bad, DataError)
    assert "2 replicas died at the same point: patch 3" in str(bad)


def test_deaths_from_outside_do_not_end_a_scan_that_was_elsewhere_each_time(tmp_path: Path) -> None:
    points = iter(["header", "scan", "patch 0", "patch 7"])

    async def die_four_times(work: Work, content: bytes) -> None:
        point = next(points, None)
        if point is not None:
            with Journal(work.journal) as journal:
                journal.write(point)
            raise RayActorError

    assert asyncio.run(Bench(tmp_path, die_four_times).segment(b"scan")) == b"nacs"


def test_scan_that_only_waited_has_any_number_of_attempts(tmp_path: Path) -> None:
    deaths = iter(range(8))

    async def die(work: Work, content: bytes) -> None:
        if next(deaths, None) is not None:
            raise RayActorError

    assert asyncio.run(Bench(tmp_path, die).segment(b"scan")) == b"nacs"


def test_time_limit_and_cancellation_reach_the_replica(tmp_path: Path) -> None:
    cancelled = []

    async def wait(work: Work, content: bytes) -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.append(content)
            raise

    async def run() -> None:
        bench = Bench(tmp_path, wait, timeout_s=0.05)
        with pytest.raises(DeadlineError, match="not ready in time"):
            await bench.segment(b"late")
        bench = Bench(tmp_path / "second", wait)
        task = asyncio.ensure_future(bench.segment(b"left"))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.sleep(0)
        assert [path.name for path in bench.spool.folder.iterdir()] == ["lock"]

    asyncio.run(run())
    assert cancelled == [b"late", b"left"]


def test_capacity_is_that_of_complete_scans(tmp_path: Path) -> None:
    go = asyncio.Event()

    async def wait(work: Work, content: bytes) -> None:
        await go.wait()

    async def run() -> None:
        bench = Bench(tmp_path, wait, max_pending=2)
        bench.segmenter.require_capacity()
        tasks = [asyncio.ensure_future(bench.segment(name)) for name in (b"one", b"two", b"three")]
        await asyncio.sleep(0.05)
        assert bench.replica.calls == 2, "the third waits for a slot"
        with pytest.raises(BusyError, match="at capacity"):
            bench.segmenter.require_capacity()
        go.set()
        assert await asyncio.gather(*tasks) == [b"eno", b"owt", b"eerht"]
        bench.segmenter.require_capacity()

    asyncio.run(run())


def test_client_has_a_share_of_the_slots(tmp_path: Path) -> None:
    go = asyncio.Event()

    async def wait(work: Work, content: bytes) -> None:
        await go.wait()

    async def run() -> None:
        bench = Bench(tmp_path, wait, max_pending=4)
        tasks = [asyncio.ensure_future(bench.segment(b"scan", client="one")) for _ in range(3)]
        await asyncio.sleep(0.05)
        with pytest.raises(ClientLimitError, match="too many requests in progress"):
            bench.segmenter.require_capacity("one")
        bench.segmenter.require_capacity("another")
        bench.segmenter.require_capacity()
        go.set()
        await asyncio.gather(*tasks)
        bench.segmenter.require_capacity("one")

    asyncio.run(run())


def test_volume_of_a_job_reports_progress_and_has_no_time_limit(tmp_path: Path) -> None:
    async def late(work: Work, content: bytes) -> None:
        await asyncio.sleep(0.2)

    bench, seen = Bench(tmp_path, late, timeout_s=0.05), list[tuple[int, int]]()
    mask = asyncio.run(bench.segment(b"scan", report=lambda done, known: seen.append((done, known))))
    assert (mask, seen) == (b"nacs", [(0, 2), (1, 2)])
    assert [path.name for path in bench.spool.folder.iterdir()] == ["lock"]
