"""A shadow version: which requests it receives, when, and isolation of its failures.

The replicas of both versions are objects of this process that return given masks.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from ray.exceptions import RayActorError

from gtvray.config import ServingConfig
from gtvray.evaluation import dice
from gtvray.geometry import Volume
from gtvray.inference import Coverage
from gtvray.io import encode_nifti, read_json_lines
from gtvray.serving.arguments import AppArguments
from gtvray.serving.gateway.segmenter import Segmenter
from gtvray.serving.shadow import Shadow
from gtvray.serving.transfer.spool import Spool
from gtvray.serving.transfer.work import Answer, Prediction, Work
from gtvray.serving.versions.pointer import ServedVersion, Versions
from gtvray.serving.versions.served import Served

from ..conftest import TOKEN, make_scan
from ..local_api import Replica, make_api

HEADERS = {"Authorization": f"Bearer {TOKEN}"}
# The name of a scan is appended.
SCAN = encode_nifti(make_scan((8, 8, 8)), compress=False)
Behaviour = Callable[[bytes], Awaitable[None]]
MASKS = {name: np.random.default_rng(seed).random((9, 8, 7)) < 0.5 for seed, name in enumerate(("served", "shadow"))}


class Version(Replica):
    """A replica that returns the mask of its version after a function of the test, and records events."""

    def __init__(self, digest: str, events: list[str], behaviour: Behaviour) -> None:
        async def whole(_: Work, content: bytes) -> None:
            await behaviour(content)

        super().__init__(whole)
        self._digest, self._events = digest, events

    async def _answer(self, work: Work) -> Answer:
        with work.body.open() as file:
            content = file.read().removeprefix(SCAN)
        self._events.append(f"{self._digest} begins {content.decode()}")
        try:
            await self._behaviour(work, content)
        except asyncio.CancelledError:
            self._events.append(f"{self._digest} cancelled {content.decode()}")
            raise
        mask_gz = encode_nifti(Volume(MASKS[self._digest].astype(np.uint8), np.eye(4)), compress=True)
        work.write_result(mask_gz)
        self._events.append(f"{self._digest} ends {content.decode()}")
        volume_ml = float(MASKS[self._digest].sum()) / 1000
        number = {"served": "7", "shadow": "8"}[self._digest]
        return Answer(Prediction(b"", volume_ml, Coverage("body", None, 1, 0, 0.0), self._digest, number), len(mask_gz))


class ShadowServed(Served):
    """The shadow version, whose replica is in this process."""

    def __init__(self, replica: Version, digest: str) -> None:
        super().__init__(AppArguments(), replica, "app")
        self._state_of = Versions(current=ServedVersion("app", "8", digest))

    def versions(self) -> Versions:
        return self._state_of


class Bench:
    """An endpoint with a shadow version, and the events of both."""

    def __init__(
        self,
        folder: Path,
        shadow: Behaviour,
        served: Behaviour | None = None,
        draws: Iterable[float] | None = None,
        digest: str = "shadow",
        **settings: Any,
    ) -> None:
        self.events: list[str] = []
        self.records = folder / "records" / "host.jsonl"
        self._settings = ServingConfig(**settings)
        self._served = Version("served", self.events, served or at_once)
        self._shadow = ShadowServed(Version("shadow", self.events, shadow), digest)
        self._folder, self._draws = folder, iter(draws) if draws is not None else None
        self.shadow: Shadow

    def _make(self, spool: Spool, segmenter: Segmenter) -> Shadow:
        draws = self._draws
        draw = (lambda: next(draws)) if draws is not None else (lambda: 0.0)
        self.spool = spool
        self.shadow = Shadow(self._settings, self._shadow, self.records, spool, segmenter, draw=draw)
        return self.shadow

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Bench]:
        app = make_api(self._folder, self._settings, self._served, make_shadow=self._make)
        transport = httpx.ASGITransport(app)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://test", headers=HEADERS) as self.client,
        ):
            yield self
            await self.settled()
            assert [path.name for path in self.spool.folder.iterdir()] == ["lock"], "nothing of a scan is left"

    async def send(self, content: str) -> None:
        """Send a scan; its answer must be the mask of the served version."""
        response = await self.client.post("/v1/segment", content=SCAN + content.encode())
        assert response.status_code == 200
        assert response.headers["X-Gtvray-Model-Version"] == "7"
        assert response.content == encode_nifti(Volume(MASKS["served"].astype(np.uint8), np.eye(4)), compress=True)

    async def settled(self) -> None:
        """Wait until no comparison is in progress and all its scans are removed."""
        while self.shadow.in_use("app") or any(path.suffix == ".shadow" for path in self.spool.folder.iterdir()):
            await asyncio.sleep(0.01)

    def counts(self) -> tuple[int, int, int]:
        found = self.shadow.describe()
        return found["compared"], found["dropped"], found["failed"]


async def at_once(content: bytes) -> None: ...


async def for_ever(content: bytes) -> None:
    await asyncio.sleep(3600)


def test_share_of_the_requests_is_compared_and_recorded(tmp_path: Path) -> None:
    async def run() -> None:
        async with Bench(tmp_path, at_once, draws=[0.0, 0.5, 0.49, 0.9], shadow_share=0.5).open() as bench:
            for name in ("one", "two", "three", "four"):
                await bench.send(name)
                await bench.settled()
            assert bench.counts() == (2, 0, 0)
            seen = [event for event in bench.events if event.startswith("shadow begins")]
            assert seen == ["shadow begins one", "shadow begins three"]
            expected = dice(MASKS["served"], MASKS["shadow"])
            models = (await bench.client.get("/v1/models")).json()
            assert models["shadow"]["mean_dice"] == pytest.approx(expected, abs=1e-4)
            assert models["shadow"]["current"]["version"] == "8"
            metrics = (await bench.client.get("/metrics")).text
            assert 'gtvray_shadow_scans_total{outcome="compared"}' in metrics
            records = read_json_lines(bench.records)
            assert [record["dice"] for record in records] == [expected, expected]
            assert [record["number"] for record in records] == [1, 2]
            assert records[0]["version"] == {"served": "7", "shadow": "8"}
            assert records[0]["volume_ml"] == {name: MASKS[name].sum() / 1000 for name in MASKS}
            assert set(records[0]) == {
                "at", "number", "request", "dice", "volume_ml", "seconds", "version", "digest"
            }  # fmt: skip

    asyncio.run(run())


def test_comparison_begins_after_the_answer(tmp_path: Path) -> None:
    async def run() -> None:
        async with Bench(tmp_path, at_once).open() as bench:
            await bench.send("one")
            await bench.settled()
            assert bench.events == ["served begins one", "served ends one", "shadow begins one", "shadow ends one"]

    asyncio.run(run())


def test_scan_that_arrives_ends_the_comparison(tmp_path: Path) -> None:
    """The second scan is answered only once the comparison of the first one has ended."""

    async def run() -> None:
        async def wait_for_the_end(content: bytes) -> None:
            while content == b"two" and "shadow cancelled one" not in bench.events:
                await asyncio.sleep(0.01)

        async with Bench(tmp_path, for_ever, wait_for_the_end, draws=[0.0, 1.0]).open() as bench:
            await bench.send("one")
            while "shadow begins one" not in bench.events:
                await asyncio.sleep(0.01)
            await asyncio.wait_for(bench.send("two"), 30)
            await bench.settled()
            assert bench.counts() == (0, 1, 0)

    asyncio.run(run())


def test_nothing_is_compared_while_another_scan_is_in_progress(tmp_path: Path) -> None:
    async def run() -> None:
        go = asyncio.Event()

        async def wait(content: bytes) -> None:
            if content == b"long":
                await go.wait()

        async with Bench(tmp_path, at_once, wait).open() as bench:
            long = asyncio.ensure_future(bench.send("long"))
            while "served begins long" not in bench.events:
                await asyncio.sleep(0.01)
            for name in ("one", "two"):
                await bench.send(name)
            assert bench.counts() == (0, 2, 0)
            assert not any(event.startswith("shadow") for event in bench.events)
            go.set()
            await long
            await bench.settled()
            assert bench.counts() == (1, 2, 0)

    asyncio.run(run())


@pytest.mark.parametrize("error", [RayActorError(), RuntimeError("a defect"), MemoryError()])
def test_shadow_that_fails_touches_no_request(tmp_path: Path, error: Exception) -> None:
    async def run() -> None:
        errors = iter([error])

        async def fail_once(content: bytes) -> None:
            if (found := next(errors, None)) is not None:
                raise found

        async with Bench(tmp_path, fail_once).open() as bench:
            await bench.send("one")
            await bench.settled()
            assert bench.counts() == (0, 0, 1)
            await bench.send("one")
            await bench.settled()
            assert bench.counts() == (1, 0, 1)

    asyncio.run(run())


def test_hanging_shadow_is_cancelled(tmp_path: Path) -> None:
    async def run() -> None:
        async with Bench(tmp_path, for_ever, timeout_s=0.2).open() as bench:
            await bench.send("one")
            await bench.settled()
            assert bench.counts() == (0, 0, 1)
            assert bench.events[-1] == "shadow cancelled one"

    asyncio.run(run())


def test_champion_is_not_compared_with_itself(tmp_path: Path) -> None:
    async def run() -> None:
        async with Bench(tmp_path, at_once, digest="served").open() as bench:
            await bench.send("one")
            assert bench.counts() == (0, 0, 0)

    asyncio.run(run())
