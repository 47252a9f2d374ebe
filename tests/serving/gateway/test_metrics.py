"""Metrics of a gateway, and of a replica at the end of a scan."""

from __future__ import annotations

import asyncio
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from gtvray.config import JobsConfig, ServingConfig
from gtvray.io import encode_nifti
from gtvray.serving.jobs import Jobs
from gtvray.serving.replica.budget import MemoryBudget
from gtvray.serving.replica.deployment import Model
from gtvray.serving.transfer.work import Work
from gtvray.serving.versions.pointer import RejectedVersion, Versions
from gtvray.serving.versions.served import Served

from ..conftest import TOKEN, make_scan
from ..local_api import Replica, make_api

SCAN = encode_nifti(make_scan((20, 20, 20)), compress=True)


async def read(client: httpx.AsyncClient) -> dict[str, float]:
    answer = await client.get("/metrics")
    assert answer.status_code == 200
    lines = [line.rsplit(" ", 1) for line in answer.text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, value in lines}


def test_queue_memory_and_rejected_versions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rejected = tuple(RejectedVersion(number, "digest", "reason", "2026-01-01") for number in "12")
    monkeypatch.setattr(Served, "versions", lambda self: Versions(rejected=rejected))
    started, release = asyncio.Event(), asyncio.Event()

    async def wait(work: Work, content: bytes) -> None:
        started.set()
        await release.wait()

    async def run() -> tuple[dict[str, float], dict[str, float]]:
        app = make_api(tmp_path, ServingConfig(jobs=JobsConfig(at_once=1)), Replica(wait), jobs=True)
        transport = httpx.ASGITransport(app=app)
        headers = {"Authorization": f"Bearer {TOKEN}"}
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://test", headers=headers) as client,
        ):
            files = [("scan", ("scan.nii.gz", SCAN))] * 3
            response = await client.post("/v1/jobs", files=files)
            assert response.status_code == 202, response.text
            await started.wait()
            found = await read(client)

            async def fail(self: Jobs) -> None:
                raise OSError

            monkeypatch.setattr(Jobs, "queue", fail)
            without = await read(client)
            release.set()
            return found, without

    found, without = asyncio.run(run())
    assert (found["gtvray_job_volumes_queued"], found["gtvray_job_volumes_running"]) == (2, 1)
    assert found['gtvray_versions_rejected{model="gtvray-gtv"}'] == 2
    assert 1e6 < found["gtvray_gateway_memory_bytes"] < 1e11
    assert without["gtvray_job_volumes_queued"] != without["gtvray_job_volumes_queued"], "not known, and no old number"


def test_cancelled_scan_leaves_no_queued_patches_in_the_metrics() -> None:
    shown: dict[str, Any] = {}
    model = Model.__new__(Model)
    model._budget = MemoryBudget(1000)
    model._scheduler = SimpleNamespace(queued_s=0.0)  # type: ignore[assignment]
    model._metrics = SimpleNamespace(  # type: ignore[assignment]
        held=lambda count: shown.update(held=count), queued=lambda seconds: shown.update(queued=seconds)
    )

    async def run() -> None:
        async with model._memory(10, lambda name: nullcontext()):
            assert shown == {"held": 10}
            raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(run())
    assert shown == {"held": 0, "queued": 0.0}
