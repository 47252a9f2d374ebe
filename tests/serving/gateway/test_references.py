"""Requests that reference a file on the server's disk or in an object store instead of sending it."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from gtvray.config import JobsConfig, ServingConfig
from gtvray.io import encode_nifti
from gtvray.serving.gateway.tokens import Role, TokenFile
from gtvray.serving.transfer.work import Work

from ...object_store import BUCKET, object_store
from ..conftest import TOKEN, make_scan
from ..local_api import Replica, make_api, problem_of
from .live import at_once

SCAN = encode_nifti(make_scan((20, 22, 24)), compress=True)


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    folder = tmp_path / "archive"
    folder.mkdir()
    (folder / "scan.nii.gz").write_bytes(SCAN)
    (folder / "text.nii.gz").write_bytes(b"a sentence")
    (tmp_path / "secret.nii.gz").write_bytes(SCAN)
    (folder / "link.nii.gz").symlink_to(tmp_path / "secret.nii.gz")
    return folder


def send(app: FastAPI, body: Any, token: str = TOKEN) -> httpx.Response:
    async def run() -> httpx.Response:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://endpoint") as client:
            return await client.post("/v1/segment", json=body, headers={"Authorization": f"Bearer {token}"})

    return asyncio.run(run())


@pytest.fixture
def app(archive: Path, tmp_path: Path) -> FastAPI:
    return make_api(tmp_path, ServingConfig(jobs=JobsConfig(roots=[archive])), Replica(at_once))


def test_referenced_file_is_segmented_and_stays(app: FastAPI, archive: Path, tmp_path: Path) -> None:
    answer = send(app, {"path": str(archive / "scan.nii.gz")})
    assert (answer.status_code, answer.content) == (200, SCAN[::-1])
    assert (archive / "scan.nii.gz").read_bytes() == SCAN
    assert [path.name for path in next(tmp_path.glob("gtvray-spool-*")).iterdir()] == ["lock"]


def test_other_files_and_bodies_are_refused(app: FastAPI, archive: Path, tmp_path: Path) -> None:
    for path in (
        archive / "none.nii",
        archive / "link.nii.gz",
        archive / ".." / "secret.nii.gz",
        "scan.nii.gz",
        "s3://a/b",
    ):
        problem_of(send(app, {"path": str(path)}), 404, "urn:gtvray:NotFoundError")
    problem_of(send(app, {"path": str(archive / "text.nii.gz")}), 422, "urn:gtvray:VolumeError")
    problem_of(send(app, {"path": str(archive / "scan.nii.gz"), "more": 1}), 422, "urn:gtvray:InputError")
    problem_of(send(app, {"path": 1}), 422, "urn:gtvray:InputError")
    problem_of(send(app, {"file": "QUJD" * 99}), 415, "urn:gtvray:ContentTypeError")
    problem_of(send(app, {"file": "QUJD" * 99_999}), 415, "urn:gtvray:ContentTypeError")


def test_role_segment_references_nothing(app: FastAPI, archive: Path, tmp_path: Path) -> None:
    token = TokenFile(tmp_path / "tokens.json").add("station", Role.SEGMENT)
    problem_of(send(app, {"path": str(archive / "scan.nii.gz")}, token), 403, "urn:gtvray:ForbiddenError")


def test_file_that_is_changed_meanwhile_gives_no_mask(archive: Path, tmp_path: Path) -> None:
    async def change(work: Work, content: bytes) -> None:
        (archive / "scan.nii.gz").write_bytes(content)
        os.utime(archive / "scan.nii.gz", ns=(1, 1))

    settings = ServingConfig(jobs=JobsConfig(roots=[archive]))
    app = make_api(tmp_path, settings, Replica(change))
    problem_of(send(app, {"path": str(archive / "scan.nii.gz")}), 409, "urn:gtvray:ConflictError")


def test_referenced_object_is_segmented(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with object_store() as store:
        for name, value in store.environment.items():
            monkeypatch.setenv(name, value)
        store.client().put_object(Bucket=BUCKET, Key="scans/scan.nii.gz", Body=SCAN)
        settings = ServingConfig(jobs=JobsConfig(uris=[f"s3://{BUCKET}/scans"]))
        app = make_api(tmp_path, settings, Replica(at_once))
        answer = send(app, {"path": f"s3://{BUCKET}/scans/scan.nii.gz"})
        assert (answer.status_code, answer.content) == (200, SCAN[::-1])
        problem_of(send(app, {"path": f"s3://{BUCKET}/other.nii.gz"}), 404, "urn:gtvray:NotFoundError")
        assert [path.name for path in next(tmp_path.glob("gtvray-spool-*")).iterdir()] == ["lock"]
