"""Fixtures of the job tests: an application with jobs only, whose model is a function of the test."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from fastapi import FastAPI
from starlette.requests import Request

from gtvray.config import JobsConfig
from gtvray.inference import Coverage
from gtvray.io import decode_volume, encode_nifti
from gtvray.serving.gateway.access import Access
from gtvray.serving.gateway.guard import Guard
from gtvray.serving.jobs import JobRoutes, Jobs, worker
from gtvray.serving.jobs.records import Requester
from gtvray.serving.transfer.spool import Body, Spool
from gtvray.serving.transfer.uploads import UploadLimits
from gtvray.serving.transfer.work import Prediction

TOKEN = "a-test-token"
BEARER = {"Authorization": f"Bearer {TOKEN}"}
Report = Callable[[int, int], None]
Segment = Callable[[bytes, str, Report], Awaitable[Prediction]]


async def threshold(content: bytes, request_id: str, report: Report) -> Prediction:
    """A stand-in for the model that depends on the scan: its mask is every voxel above 0."""
    scan = decode_volume(content)
    mask = scan.with_array((scan.array > 0).astype(np.uint8))
    volume_ml = float(mask.array.sum(dtype=int)) * mask.voxel_volume_ml
    report(2, 2)
    return Prediction(encode_nifti(mask, compress=True), volume_ml, Coverage("body", None, 2, 0, 0.0), "d" * 64, "7")


def reading(segment: Segment) -> worker.Segment:
    """Adapt a model of a test, which takes the content of a volume."""

    async def segment_body(body: Body, model: str | None, client: str, request_id: str, report: Report) -> Prediction:
        with body.open() as file:
            content = file.read()
        return await segment(content, request_id, report)

    return segment_body


def build_jobs_app(
    folder: Path,
    segment: Segment = threshold,
    *,
    limit_bytes: int = 1 << 20,
    spool: Spool | None = None,
    **settings: Any,
) -> FastAPI:
    """An application with its jobs in a folder; the X-Client header of a request names its client."""

    def who(request: Request) -> Requester:
        name = request.headers.get("x-client", "default")
        return Requester(name, sees_all=name == "admin")

    app = FastAPI(redirect_slashes=False)
    limits = UploadLimits(limit_bytes, 16 << 10)
    app.add_middleware(Guard, access=Access(TOKEN, None, 60_000), limits=limits)
    jobs = Jobs(folder, JobsConfig(**settings), limits, reading(segment), spool)
    app.include_router(JobRoutes(jobs, who, lambda _, name: name, no_load).router())
    return app


async def no_load() -> dict[str, object]:
    """Stand in for the load that the gateway adds to the queue's document."""
    return {}


@asynccontextmanager
async def jobs_app(folder: Path, segment: Segment = threshold, **settings: Any) -> AsyncIterator[httpx.AsyncClient]:
    """Run an application with jobs, and yield an HTTP client of it."""
    app = build_jobs_app(folder, segment, **settings)
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://test", headers=BEARER, timeout=30) as client,
    ):
        yield client


async def ended(client: httpx.AsyncClient, job: httpx.Response | str, **headers: str) -> dict[str, Any]:
    """Wait until a job has ended; return its document."""
    job_id = job if isinstance(job, str) else job.json()["id"]
    deadline = time.monotonic() + 60
    while True:
        found: dict[str, Any] = (await client.get(f"/v1/jobs/{job_id}", headers=headers)).json()
        if found["ended_at"] is not None:
            return found
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)
