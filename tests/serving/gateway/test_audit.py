"""The audit log: permissions, the model of a scan that failed, cancelled and deleted jobs."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from gtvray.config import ServingConfig
from gtvray.errors import VolumeError
from gtvray.io import encode_nifti
from gtvray.serving.gateway.audit import AuditLog
from gtvray.serving.transfer.work import Work

from ..conftest import TOKEN, make_scan
from ..local_api import Description, Replica, make_api

SCAN = encode_nifti(make_scan((20, 20, 20)), compress=True)
KNOWN = {"model": "digest", "version": "1"}


class Stream:
    """A volume of a job that never ends, and that can be cancelled like a response of Serve."""

    def __init__(self) -> None:
        self.describe, self.predict_reporting, self.started = Description(), self, asyncio.Event()

    def options(self, *, stream: bool) -> Stream:
        return self

    def remote(self, work: Work, request_id: str) -> Stream:
        return self

    async def __aiter__(self) -> AsyncIterator[tuple[int, int]]:
        self.started.set()
        await asyncio.Event().wait()
        yield 1, 1

    def cancel(self) -> None: ...


def lines(folder: Path) -> list[dict[str, Any]]:
    (log,) = (folder / "audit").iterdir()
    return [json.loads(line) for line in log.read_text().splitlines()]


def test_only_the_owner_can_read_the_log(tmp_path: Path) -> None:
    asyncio.run(AuditLog(tmp_path).write("r", client="station"))
    (path,) = tmp_path.iterdir()
    assert path.stat().st_mode & 0o777 == 0o600
    path.chmod(0o644)
    asyncio.run(AuditLog(tmp_path).write("r", client="station"))
    assert path.stat().st_mode & 0o777 == 0o600
    assert len(path.read_text().splitlines()) == 2


@pytest.mark.parametrize("known", [True, False])
def test_scan_that_fails_is_recorded_with_the_model(tmp_path: Path, known: bool) -> None:
    async def fail(work: Work, content: bytes) -> None:
        raise VolumeError("not a head")

    async def run() -> None:
        transport = httpx.ASGITransport(app=make_api(tmp_path, ServingConfig(), Replica(fail)))
        headers = {"Authorization": f"Bearer {TOKEN}"}
        async with httpx.AsyncClient(transport=transport, base_url="http://test", headers=headers) as client:
            if known:
                assert (await client.get("/readyz")).status_code == 200
            await client.post("/v1/segment", content=SCAN)

    asyncio.run(run())
    (line,) = lines(tmp_path)
    assert line["outcome"] != "segmented"
    assert {name: line[name] for name in KNOWN if name in line} == (KNOWN if known else {})


def test_cancelled_and_deleted_job(tmp_path: Path) -> None:
    model = Stream()

    async def run() -> str:
        app = make_api(tmp_path, ServingConfig(), model, jobs=True)
        headers = {"Authorization": f"Bearer {TOKEN}"}
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(
                transport=httpx.ASGITransport(app=app), base_url="http://test", headers=headers
            ) as client,
        ):
            job = (await client.post("/v1/jobs", content=SCAN)).json()["id"]
            await model.started.wait()
            await client.delete(f"/v1/jobs/{job}")
            return str(job)

    job = asyncio.run(run())
    assert {(line["request"], line["outcome"]) for line in lines(tmp_path)} == {(job, "cancelled"), (job, "deleted")}
