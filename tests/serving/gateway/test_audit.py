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
from gtvray.serving.gateway import refusals
from gtvray.serving.gateway.audit import AuditLog
from gtvray.serving.gateway.tokens import Role, TokenFile
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


def test_refused_requests_are_recorded_without_what_the_client_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Refusals of one kind that follow at once share a line, so that nobody can fill the disk with them."""
    monkeypatch.setattr(refusals, "_TOGETHER_S", 0.2)
    tokens = TokenFile(tmp_path / "tokens.json")
    station, busy = tokens.add("station", Role.SEGMENT), tokens.add("busy", Role.SEGMENT)

    async def run() -> list[str]:
        app = make_api(tmp_path, ServingConfig(client_requests_per_minute=2), Replica(fail))
        ids = []
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://test") as client:

            async def ask(method: str, path: str, token: str, status: int) -> None:
                answer = await client.request(method, path, headers={"Authorization": f"Bearer {token}"})
                assert answer.status_code == status
                ids.append(answer.headers["X-Request-ID"])

            await ask("POST", "/v1/segment?Doe", "a-wrong-token", 401)
            await ask("POST", "/v1/segment", "another", 401)
            await ask("GET", "/Doe", "another", 401)
            await ask("GET", f"/v1/jobs/{32 * 'd'}", station, 403)
            for status in (200, 200, 429):
                await ask("GET", "/v1/queue", busy, status)
            while len(lines(tmp_path)) < 5:
                await asyncio.sleep(0.02)
        return ids

    async def fail(work: Work, content: bytes) -> None: ...

    ids = asyncio.run(run())
    text = next((tmp_path / "audit").iterdir()).read_text()
    found = [{name: value for name, value in line.items() if name != "at"} for line in lines(tmp_path)]
    wrong = {"client": None, "outcome": "AuthError", "method": "POST", "route": "/v1/segment", "count": 1}
    assert sorted(found, key=lambda line: ids.index(line["request"])) == [
        {"request": ids[0], **wrong},
        {"request": ids[1], **wrong},
        {"request": ids[2], **wrong, "method": "GET", "route": "none"},
        {
            "request": ids[3],
            "client": "station",
            "outcome": "ForbiddenError",
            "method": "GET",
            "route": "/v1/jobs/{job_id}",
            "count": 1,
        },
        {
            "request": ids[6],
            "client": "busy",
            "outcome": "ClientLimitError",
            "method": "GET",
            "route": "/v1/queue",
            "count": 1,
        },
    ]
    assert not [word for word in ("Doe", "wrong", station) if word in text]
