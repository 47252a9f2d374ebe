"""Volumes that jobs reference in an S3-compatible object store."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import ValidationError

from gtvray.config import JobsConfig
from gtvray.io import encode_nifti
from gtvray.serving.jobs import objects, worker
from gtvray.serving.transfer.spool import Spool

from ...object_store import BUCKET, ObjectStore, object_store
from ..conftest import make_scan
from .conftest import Report, Segment, ended, jobs_app, threshold
from .test_jobs import Gate, Prediction, check_problem, stored_files

SCAN = encode_nifti(make_scan((20, 22, 24)), compress=True)
OTHER = encode_nifti(make_scan((18, 18, 18), seed=1), compress=False)
FOLDER = f"s3://{BUCKET}/scans"


@pytest.fixture(scope="module")
def store() -> Iterator[ObjectStore]:
    with object_store() as running, pytest.MonkeyPatch.context() as patch:
        for name, value in running.environment.items():
            patch.setenv(name, value)
        client = running.client()
        for name, content in (
            ("scans/first.nii.gz", SCAN), ("scans/sub/Doe John.nii", OTHER), ("scans/text.nii", b"a sentence"),
            ("scans-of-others/scan.nii", OTHER), ("scan.nii", OTHER),
        ):  # fmt: skip
            client.put_object(Bucket=BUCKET, Key=name, Body=content)
        yield running


@asynccontextmanager
async def endpoint(
    folder: Path, segment: Segment = threshold, uris: tuple[str, ...] = (FOLDER,), **settings: Any
) -> AsyncIterator[tuple[httpx.AsyncClient, Spool]]:
    spool = Spool(folder, 1 << 20, 1 << 20)
    try:
        async with jobs_app(folder / "jobs", segment, spool=spool, uris=uris, **settings) as client:
            yield client, spool
    finally:
        spool.close()


async def post(client: httpx.AsyncClient, *uris: str) -> httpx.Response:
    return await client.post("/v1/jobs", json={"volumes": [{"path": uri} for uri in uris]})


def test_object_is_copied_to_the_spool_while_it_is_segmented(store: ObjectStore, tmp_path: Path) -> None:
    seen: list[bytes] = []

    async def note(content: bytes, request_id: str, report: Report) -> Prediction:
        seen.append(content)
        return await threshold(content, request_id, report)

    async def run() -> None:
        async with endpoint(tmp_path, note, at_once=1) as (client, spool):
            accepted = await post(client, f"{FOLDER}/first.nii.gz", f"{FOLDER}/sub/Doe John.nii")
            job = await ended(client, accepted)
            assert [each["state"] for each in job["volumes"]] == ["done", "done"], job
            assert [path.name for path in spool.folder.iterdir()] == ["lock"]
            assert spool.used_bytes == 0
            assert [name for name in stored_files(tmp_path / "jobs") if name.startswith("input")] == []

    asyncio.run(run())
    assert seen == [SCAN, OTHER]


@pytest.mark.parametrize(
    "uri",
    [
        f"s3://{BUCKET}/scan.nii", f"s3://{BUCKET}/scans-of-others/scan.nii", f"{FOLDER}/../scan.nii",
        f"{FOLDER}//scan.nii", f"{FOLDER}/none.nii", f"{FOLDER}/sub", FOLDER,
        f"{FOLDER}/first.nii.gz?endpoint_override=localhost%3A1",
        f"{FOLDER}/first%2Enii.gz", f"s3:/{BUCKET}/scans/first.nii.gz", f"s3://key:secret@{BUCKET}/scans/first.nii.gz",
        "file:///etc/passwd", "gs://gtvray/scans/first.nii.gz", f"{FOLDER}/a\0b",
    ],
)  # fmt: skip
def test_object_that_is_missing_or_elsewhere_is_not_found(store: ObjectStore, tmp_path: Path, uri: str) -> None:
    async def run() -> None:
        async with endpoint(tmp_path) as (client, _):
            problem = check_problem(await post(client, f"{FOLDER}/first.nii.gz", uri), 404, "NotFoundError")
            assert problem["title"] == "no such object below an allowed folder"
            assert "Doe" not in str(problem)
            assert (await client.get("/v1/jobs")).json()["jobs"] == []

    asyncio.run(run())


def test_object_is_checked_before_the_job_is_accepted(store: ObjectStore, tmp_path: Path) -> None:
    async def run() -> None:
        async with endpoint(tmp_path, limit_bytes=len(SCAN) - 1) as (client, _):
            check_problem(await post(client, f"{FOLDER}/text.nii"), 422, "VolumeError")
            check_problem(await post(client, f"{FOLDER}/first.nii.gz"), 413, "TooLargeError")
        async with endpoint(tmp_path, uris=()) as (client, _):
            check_problem(await post(client, f"{FOLDER}/first.nii.gz"), 404, "NotFoundError")

    asyncio.run(run())


def test_forbidden_object_and_store_that_is_away(store: ObjectStore, tmp_path: Path) -> None:
    async def run() -> None:
        async with endpoint(tmp_path) as (client, _):
            httpx.post(f"{store.url}/moto-api/reset-auth", content="0")
            try:
                check_problem(await post(client, f"{FOLDER}/first.nii.gz"), 403, "ForbiddenError")
            finally:
                httpx.post(f"{store.url}/moto-api/reset-auth", content="1000000")
            store.stop()
            try:
                problem = check_problem(await post(client, f"{FOLDER}/sub/Doe John.nii"), 503, "ResourceError")
            finally:
                store.start()
            assert "Doe" not in str(problem)

    asyncio.run(run())


@pytest.mark.slow
def test_volume_waits_while_the_store_is_away(
    store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "_WAIT_FOR_MODEL_S", 0.1)
    gate = Gate()

    async def run() -> None:
        async with endpoint(tmp_path, gate, at_once=1) as (client, _):
            accepted = await post(client, f"{FOLDER}/first.nii.gz", f"{FOLDER}/sub/Doe John.nii")
            await gate.started.wait()
            store.stop()
            gate.open.set()
            try:
                while True:
                    job = (await client.get(f"/v1/jobs/{accepted.json()['id']}")).json()
                    if job["volumes"][0]["state"] == "done":
                        break
                    await asyncio.sleep(0.02)
                assert job["volumes"][1]["state"] in {"queued", "running"}
            finally:
                store.start()
            job = await ended(client, accepted)
            assert [each["state"] for each in job["volumes"]] == ["done", "done"]

    asyncio.run(run())


def test_object_that_changes_after_the_job_was_accepted_has_no_mask(store: ObjectStore, tmp_path: Path) -> None:
    name, client_of_store = "scans/changing.nii", store.client()
    client_of_store.put_object(Bucket=BUCKET, Key=name, Body=OTHER)
    gate = Gate()

    async def run() -> None:
        async with endpoint(tmp_path, gate, at_once=1) as (client, _):
            accepted = await post(client, f"{FOLDER}/first.nii.gz", f"s3://{BUCKET}/{name}")
            await gate.started.wait()
            client_of_store.put_object(Bucket=BUCKET, Key=name, Body=SCAN)
            gate.open.set()
            job = await ended(client, accepted)
            assert [each["state"] for each in job["volumes"]] == ["done", "failed"]
            assert "changed after it was accepted" in job["volumes"][1]["problem"]["title"]

    asyncio.run(run())


def test_copy_ends_at_the_limit(store: ObjectStore, tmp_path: Path) -> None:
    """As if the object had grown since its size was read."""

    async def run() -> None:
        spool = Spool(tmp_path, 1 << 20, 1 << 20)
        pinned = objects.pin_object(f"{FOLDER}/first.nii.gz", [FOLDER], len(SCAN))
        try:
            with pytest.raises(objects.TooLargeError):
                async with objects.copied_object(pinned, [FOLDER], len(SCAN) - 1, spool, "me"):
                    pass
            assert [path.name for path in spool.folder.iterdir()] == ["lock"]
        finally:
            spool.close()

    asyncio.run(run())


@pytest.mark.parametrize(
    "folder", ["/data", "file:///data", "s3://bucket?endpoint_override=x", "s3://", "s3://a%2Fb", "s3://k:s@b"]
)
def test_setting_takes_folders_in_object_stores_only(folder: str) -> None:
    with pytest.raises(ValidationError):
        JobsConfig(uris=(folder,))
    assert JobsConfig(uris=("s3://bucket", "gs://bucket/a/b/")).uris
