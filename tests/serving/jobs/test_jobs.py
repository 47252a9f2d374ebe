"""Jobs over HTTP, in this process: bodies, results, isolation of clients, cancelling, restarts, faults."""

from __future__ import annotations

import asyncio
import errno
import gzip
import json
import os
import sqlite3
import threading
import time
from collections.abc import AsyncIterator
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from sqlalchemy import Engine
from sqlalchemy.exc import OperationalError, SQLAlchemyError

from gtvray.config import JobsConfig, ServingConfig
from gtvray.errors import BusyError, ClientLimitError, InputError, NotReadyError, ResourceError
from gtvray.io import decode_nifti, encode_nifti, encode_nrrd
from gtvray.serving.gateway.tokens import OPERATOR
from gtvray.serving.jobs import Jobs
from gtvray.serving.jobs.files import JobFiles, StoredFile
from gtvray.serving.jobs.records import Accepted, Claim, JobStatus, NewJob
from gtvray.serving.jobs.store import JobStore
from gtvray.serving.jobs.table import DATABASE_VARIABLE
from gtvray.serving.transfer.sealed import SealedWriter
from gtvray.serving.transfer.uploads import UploadLimits
from gtvray.serving.transfer.work import Prediction

from ...databases import postgres
from ..conftest import make_scan
from ..local_api import make_api
from .conftest import BEARER, Report, Segment, ended, jobs_app, reading, threshold

SCAN = encode_nifti(make_scan((20, 22, 24)), compress=True)
OTHER = encode_nifti(make_scan((18, 18, 18), seed=1), compress=False)


def form(*scans: bytes) -> list[tuple[str, tuple[str, bytes]]]:
    return [("scan", ("Doe, John.nii.gz", scan)) for scan in scans]


def check_problem(response: httpx.Response, status: int, kind: str) -> dict[str, Any]:
    assert (response.status_code, response.headers["content-type"]) == (status, "application/problem+json"), (
        response.text
    )
    problem: dict[str, Any] = response.json()
    assert problem["type"] == f"urn:gtvray:{kind}"
    return problem


def expected_mask(content: bytes) -> np.ndarray[Any, Any]:
    return (decode_nifti(gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content).array > 0).astype(
        np.uint8
    )


def stored_files(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "files").rglob("*") if path.is_file())


class Gate:
    """A model that blocks on each volume until it is released."""

    def __init__(self) -> None:
        self.open, self.started, self.cancelled = asyncio.Event(), asyncio.Event(), 0

    async def __call__(self, content: bytes, request_id: str, report: Report) -> Prediction:
        self.started.set()
        report(1, 4)
        try:
            await self.open.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return await threshold(content, request_id, report)


def test_volumes_of_every_kind_of_body_get_their_masks(tmp_path: Path) -> None:
    nrrd = encode_nrrd(make_scan((16, 18, 20)))
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "scan.nii").write_bytes(OTHER)
    references = {"volumes": [{"path": str(tmp_path / "data" / "scan.nii")}]}

    async def run() -> None:
        async with jobs_app(tmp_path / "jobs", roots=(tmp_path / "data",)) as client:
            for scans, body in (
                ([SCAN], {"content": SCAN}),
                ([nrrd], {"content": nrrd}),
                ([SCAN, OTHER, SCAN], {"files": form(SCAN, OTHER, SCAN)}),
                ([OTHER], {"json": references}),
            ):
                accepted = await client.post("/v1/jobs", **body)  # type: ignore[arg-type]
                assert accepted.status_code == 202, accepted.text
                assert accepted.headers["Location"] == f"/v1/jobs/{accepted.json()['id']}"
                job = await ended(client, accepted)
                assert (job["state"], job["percent"]) == ("done", 100.0)
                assert [each["number"] for each in job["volumes"]] == list(range(len(scans)))
                for volume, scan in zip(job["volumes"], scans, strict=True):
                    result = await client.get(volume["result"])
                    assert result.headers["content-type"] == "application/gzip"
                    mask = decode_nifti(gzip.decompress(result.content))
                    if scan is not nrrd:
                        assert np.array_equal(mask.array, expected_mask(scan))
                    document = (await client.get(volume["result"], headers={"Accept": "application/json"})).json()
                    assert document["mask"]["href"] == volume["result"]
                    assert document["request_id"] == job["id"]
                    assert f"{document['volume_ml']:.3f}" == result.headers["X-Gtvray-Volume-Ml"]
            listed = (await client.get("/v1/jobs", params={"limit": 3})).json()["jobs"]
            assert len(listed) == 3
            older = (await client.get("/v1/jobs", params={"before": listed[-1]["id"]})).json()["jobs"]
            assert len(older) == 1

    asyncio.run(run())


def test_store_is_encrypted_private_and_emptied(tmp_path: Path) -> None:
    plain = encode_nifti(make_scan((20, 22, 24)), compress=False)

    async def run() -> None:
        gate = Gate()
        async with jobs_app(tmp_path / "jobs", gate) as client:
            accepted = await client.post("/v1/jobs", files=form(plain), headers={"Idempotency-Key": "Doe, John"})
            assert stored_files(tmp_path / "jobs") == ["input-0"]
            for path in (tmp_path / "jobs").rglob("*"):
                assert path.is_dir() or (plain[:200] not in path.read_bytes() and b"Doe, J" not in path.read_bytes())
                assert path.stat().st_mode & 0o077 == 0 or path.suffix.startswith(".db")
            assert (tmp_path / "jobs").stat().st_mode & 0o777 == 0o700
            # As left by an attempt that was killed before its mask was recorded.
            (tmp_path / "jobs" / "files" / accepted.json()["id"] / "mask-0-0").write_bytes(b"lost")
            gate.open.set()
            job = await ended(client, accepted)
            # The input and the lost mask are removed one after the other.
            while stored_files(tmp_path / "jobs") != ["mask-0-1"]:
                await asyncio.sleep(0.01)
            deleted = await client.delete(f"/v1/jobs/{job['id']}")
            assert (deleted.status_code, deleted.json()["state"]) == (200, "done")
            assert stored_files(tmp_path / "jobs") == []
            check_problem(await client.get(f"/v1/jobs/{job['id']}/results/0"), 404, "NotFoundError")

    asyncio.run(run())


def test_a_mask_that_is_being_written_does_not_outlive_its_cancelled_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Removing a folder while a file is added to it would leave the file."""
    writing, cancelled, order = threading.Event(), threading.Event(), []
    write_mask, cancel, remove_job = JobFiles.write_mask, JobStore.cancel, JobFiles.remove_job

    def write_after_cancellation(self: JobFiles, claim: Claim, mask_gz: bytes) -> tuple[StoredFile, int]:
        writing.set()
        assert cancelled.wait(30)
        time.sleep(0.2)
        order.append("written")
        return write_mask(self, claim, mask_gz)

    def cancel_and_signal(self: JobStore, owner: str | None, job_id: str) -> JobStatus:
        try:
            return cancel(self, owner, job_id)
        finally:
            cancelled.set()

    def record_removal(self: JobFiles, job_id: str) -> None:
        order.append("removed")
        remove_job(self, job_id)

    monkeypatch.setattr(JobFiles, "write_mask", write_after_cancellation)
    monkeypatch.setattr(JobStore, "cancel", cancel_and_signal)
    monkeypatch.setattr(JobFiles, "remove_job", record_removal)

    async def run() -> None:
        async with jobs_app(tmp_path / "jobs") as client:
            accepted = await client.post("/v1/jobs", content=SCAN)
            await asyncio.to_thread(writing.wait, 30)
            assert (await client.delete(accepted.headers["Location"])).json()["state"] == "cancelled"
            assert (order, stored_files(tmp_path / "jobs")) == (["written", "removed"], [])

    asyncio.run(run())


def test_invalid_jobs_are_refused_and_leave_nothing(tmp_path: Path) -> None:
    scan, key = SCAN, {"Idempotency-Key": ""}
    boundary = {"Content-Type": "multipart/form-data; boundary=x"}
    cases: list[tuple[dict[str, Any], int, str]] = [
        ({"content": b""}, 422, "InputError"),
        ({"content": b"a sentence, not a scan"}, 422, "VolumeError"),
        ({"content": os.urandom(300)}, 422, "VolumeError"),
        ({"content": scan + bytes(1 << 20)}, 413, "TooLargeError"),
        ({"files": form(scan, b"not a scan")}, 422, "VolumeError"),
        ({"files": form(scan, b"")}, 422, "InputError"),
        ({"files": [("file", ("a", scan))]}, 422, "InputError"),
        ({"files": form(*[scan] * 4)}, 413, "TooLargeError"),
        ({"content": b"--x\r\nno", "headers": boundary}, 422, "InputError"),
        ({"content": b"--x--\r\n", "headers": boundary}, 422, "InputError"),
        ({"content": b"", "headers": {"Content-Type": "multipart/form-data"}}, 422, "InputError"),
        ({"content": b"--x\r\n" + b"a: b\r\n" * 100_000, "headers": boundary}, 422, "InputError"),
        ({"json": {"volumes": []}}, 422, "InputError"),
        ({"json": {"volumes": [{"url": "x"}]}}, 422, "InputError"),
        ({"json": {"volumes": [{"path": "/etc/passwd"}]}}, 404, "NotFoundError"),
        # Rejected by FastAPI; only the complete application converts this to a problem document.
        ({"content": scan, "headers": key}, 422, ""),
        ({"content": scan, "params": {"priority": "urgent"}}, 422, ""),
        ({"content": scan, "headers": {"Content-Encoding": "br"}}, 415, "ContentTypeError"),
    ]

    async def run() -> None:
        async with jobs_app(tmp_path / "jobs", max_volumes=3) as client:
            for request, status, kind in cases:
                response = await client.post("/v1/jobs", **request)
                if kind:
                    check_problem(response, status, kind)
                else:
                    assert response.status_code == status
            assert (await client.get("/v1/jobs")).json() == {"jobs": []}
            assert stored_files(tmp_path / "jobs") == []

    asyncio.run(run())


def test_no_body_causes_a_server_error(tmp_path: Path) -> None:
    """A form, a volume and references, cut, repeated and with changed bytes, in pieces of any size."""
    part = b'--x\r\nContent-Disposition: form-data; name="scan"; filename="a"\r\n\r\n'
    bodies = {
        "multipart/form-data; boundary=x": part + SCAN + b"\r\n" + part + OTHER[:2000] + b"\r\n--x--\r\n",
        "application/octet-stream": SCAN,
        "application/json": json.dumps({"volumes": [{"path": str(tmp_path / "data" / "scan.nii")}] * 3}).encode(),
    }
    random = np.random.default_rng(0)

    def mutated(content: bytes) -> bytes:
        changed = bytearray(content)
        for _ in range(random.integers(0, 6)):
            at, kind = int(random.integers(0, len(changed) + 1)), random.integers(0, 4)
            if kind == 0:
                del changed[at : at + int(random.integers(1, 200))]
            elif kind == 1:
                changed[at:at] = random.bytes(int(random.integers(1, 20)))
            elif kind == 2:
                changed[at:at] = changed[: int(random.integers(1, 300))]
            elif at < len(changed):
                changed[at] ^= 1 << int(random.integers(0, 8))
        return bytes(changed)

    async def run() -> None:
        async with jobs_app(tmp_path / "jobs") as client:
            for number in range(150):
                media_type, body = list(bodies.items())[number % len(bodies)]
                content, size = mutated(body), int(random.integers(1, 5000))

                async def pieces(content: bytes = content, size: int = size) -> AsyncIterator[bytes]:
                    for start in range(0, len(content), size):
                        yield content[start : start + size]

                response = await client.post("/v1/jobs", content=pieces(), headers={"Content-Type": media_type})
                assert response.status_code in (202, 404, 413, 415, 422), (media_type, content, response.text)
                if response.status_code == 202:
                    await client.delete(response.headers["Location"])
            assert stored_files(tmp_path / "jobs") == []

    asyncio.run(run())


def test_full_store_refuses_and_recovers(tmp_path: Path) -> None:
    async def run() -> None:
        gate = Gate()
        async with jobs_app(tmp_path / "jobs", gate, max_gb=1.5 * len(SCAN) / 1e9) as client:
            first = await client.post("/v1/jobs", content=SCAN)
            assert first.status_code == 202
            refused = await client.post("/v1/jobs", content=SCAN)
            assert "Retry-After" in refused.headers
            check_problem(refused, 503, "BusyError")
            assert (await client.delete(first.headers["Location"])).status_code == 200
            assert (await client.post("/v1/jobs", content=SCAN)).status_code == 202

    asyncio.run(run())


def test_another_client_sees_nothing(tmp_path: Path) -> None:
    other = {"X-Client": "another"}

    async def run() -> None:
        async with jobs_app(tmp_path / "jobs") as client:
            job = (await client.post("/v1/jobs", content=SCAN)).json()["id"]
            await ended(client, job)
            for method, path in (("GET", ""), ("DELETE", ""), ("GET", "/events"), ("GET", "/results/0")):
                response = await client.request(method, f"/v1/jobs/{job}{path}", headers=other)
                check_problem(response, 404, "NotFoundError")
            assert (await client.get("/v1/jobs", headers=other)).json() == {"jobs": []}
            assert (await client.get(f"/v1/jobs/{job}/results/0")).status_code == 200
            check_problem(await client.get(f"/v1/jobs/{job}/results/1"), 404, "NotFoundError")
            check_problem(await client.get("/v1/jobs", headers={"Authorization": ""}), 401, "AuthError")

    asyncio.run(run())


def test_repeated_request_with_a_key_is_one_job(tmp_path: Path) -> None:
    async def run() -> None:
        async with jobs_app(tmp_path / "jobs") as client:

            async def post(scan: bytes, key: str = "a", **params: str) -> httpx.Response:
                return await client.post("/v1/jobs", content=scan, params=params, headers={"Idempotency-Key": key})

            at_once = await asyncio.gather(*(post(SCAN) for _ in range(5)))
            assert {each.status_code for each in at_once} == {202}
            assert len({each.json()["id"] for each in at_once}) == 1
            assert sum("Idempotency-Replayed" in each.headers for each in at_once) == 4
            for changed in (post(OTHER), post(SCAN, priority="high")):
                check_problem(await changed, 422, "InputError")
            assert (await post(SCAN, "b")).json()["id"] != at_once[0].json()["id"]
            assert len((await client.get("/v1/jobs")).json()["jobs"]) == 2

    asyncio.run(run())


def test_cancelled_job_stops_the_model_and_deletes_the_scan(tmp_path: Path) -> None:
    async def run() -> None:
        gate = Gate()
        async with jobs_app(tmp_path / "jobs", gate, at_once=1) as client:
            accepted = await client.post("/v1/jobs", files=form(SCAN, OTHER))
            await gate.started.wait()
            running = (await client.get(accepted.headers["Location"])).json()
            assert (running["state"], [each["state"] for each in running["volumes"]]) == (
                "running",
                ["running", "queued"],
            )
            assert (running["volumes"][0]["percent"], running["percent"]) == (25.0, 12.5)
            check_problem(await client.get(f"{accepted.headers['Location']}/results/0"), 409, "ConflictError")
            queue = (await client.get("/v1/queue")).json()
            assert (queue["queued"], queue["running"], queue["expected_wait_s"]) == (1, 1, None)
            cancelled = (await client.delete(accepted.headers["Location"])).json()
            assert cancelled["state"] == "cancelled"
            while not gate.cancelled:
                await asyncio.sleep(0.01)
            assert stored_files(tmp_path / "jobs") == []
            assert (await client.delete(accepted.headers["Location"])).json() == cancelled

    asyncio.run(run())


def test_events_end_with_the_job(tmp_path: Path) -> None:
    async def run() -> list[tuple[str, dict[str, Any]]]:
        gate = Gate()
        async with jobs_app(tmp_path / "jobs", gate) as client:
            job = (await client.post("/v1/jobs", content=SCAN)).json()["id"]
            asyncio.get_running_loop().call_later(1.5, gate.open.set)
            response = await client.get(f"/v1/jobs/{job}/events")
            assert response.headers["content-type"].startswith("text/event-stream")
            blocks = [block.split("\n") for block in response.text.split("\n\n") if block.startswith("event")]
            return [(name.removeprefix("event: "), json.loads(data.removeprefix("data: "))) for name, data in blocks]

    events = asyncio.run(run())
    assert [name for name, _ in events][-1] == "end"
    assert {name for name, _ in events[:-1]} == {"progress"}
    assert events[-1][1]["state"] == "done"
    assert 25.0 in [job["percent"] for _, job in events]


def test_head_of_events_does_not_wait_for_the_end_of_the_job(tmp_path: Path) -> None:
    async def run() -> None:
        gate = Gate()
        async with jobs_app(tmp_path / "jobs", gate) as client, asyncio.timeout(20):
            job = (await client.post("/v1/jobs", content=SCAN)).json()["id"]
            response = await client.head(f"/v1/jobs/{job}/events")
            assert (response.status_code, response.content) == (200, b"")
            assert response.headers["content-type"].startswith("text/event-stream")
            assert not gate.open.is_set()
            assert (await client.head(f"/v1/jobs/{'0' * 32}/events")).status_code == 404

    asyncio.run(run())


def test_client_has_a_share_of_the_event_streams(tmp_path: Path) -> None:
    jobs = Jobs(tmp_path, JobsConfig(), UploadLimits(1 << 20, 1), reading(threshold))
    with ExitStack() as stack:
        for _ in range(8):
            jobs.require_free_watch("one")
            stack.enter_context(jobs.watching("one"))
        with pytest.raises(ClientLimitError, match="watches too many jobs"):
            jobs.require_free_watch("one")
        for _ in range(24):
            jobs.require_free_watch(OPERATOR)
            stack.enter_context(jobs.watching(OPERATOR))
        for client in ("another", OPERATOR):
            with pytest.raises(BusyError, match="too many clients"):
                jobs.require_free_watch(client)
    jobs.require_free_watch("one")


def test_job_in_progress_is_continued_after_a_stop(tmp_path: Path) -> None:
    async def run() -> None:
        gate = Gate()
        async with jobs_app(tmp_path / "jobs", gate, at_once=1) as client:
            job = (await client.post("/v1/jobs", files=form(SCAN, OTHER))).json()["id"]
            await gate.started.wait()
        assert gate.cancelled == 1
        async with jobs_app(tmp_path / "jobs") as client:
            found = await ended(client, job)
            assert [each["state"] for each in found["volumes"]] == ["done", "done"]
            for number, scan in enumerate((SCAN, OTHER)):
                mask = (await client.get(f"/v1/jobs/{job}/results/{number}")).content
                assert np.array_equal(decode_nifti(gzip.decompress(mask)).array, expected_mask(scan))

    asyncio.run(run())


def test_failed_volume_has_its_reason_and_the_others_their_masks(tmp_path: Path) -> None:
    async def segment(content: bytes, request_id: str, report: Report) -> Prediction:
        if content == OTHER:
            raise InputError("not a CT", found="values from 0 to 1")
        if content[:4] == b"NRRD":
            raise RuntimeError("/secret/path")
        return await threshold(content, request_id, report)

    async def run() -> None:
        async with jobs_app(tmp_path / "jobs", segment) as client:
            nrrd = encode_nrrd(make_scan((16, 18, 20)))
            job = await ended(client, await client.post("/v1/jobs", files=form(OTHER, SCAN, nrrd)))
            assert job["state"] == "done"
            assert [each["state"] for each in job["volumes"]] == ["failed", "done", "failed"]
            assert job["volumes"][0]["problem"]["found"] == "values from 0 to 1"
            assert "secret" not in str(job)
            location = f"/v1/jobs/{job['id']}/results"
            assert check_problem(await client.get(f"{location}/0"), 422, "InputError")["title"] == "not a CT"
            assert (await client.get(f"{location}/1")).status_code == 200
            check_problem(await client.get(f"{location}/2"), 500, "FailureError")
            assert (await ended(client, await client.post("/v1/jobs", content=OTHER)))["state"] == "failed"

    asyncio.run(run())


@pytest.mark.parametrize(
    "error", [NotReadyError("none"), BusyError("full"), ResourceError("away"), OSError("disk"), SQLAlchemyError("away")]
)
def test_volume_waits_for_a_model(tmp_path: Path, error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    for pause in ("_WAIT_FOR_MODEL_S", "_POLL_S"):
        monkeypatch.setattr(f"gtvray.serving.jobs.worker.{pause}", 0.05)
    left = [error] * 3

    async def segment(content: bytes, request_id: str, report: Report) -> Prediction:
        if left:
            raise left.pop()
        return await threshold(content, request_id, report)

    async def run() -> None:
        async with jobs_app(tmp_path / "jobs", segment) as client:
            assert (await ended(client, await client.post("/v1/jobs", content=SCAN)))["state"] == "done"

    asyncio.run(run())


@pytest.mark.parametrize(
    ("cause", "code", "status", "kind"),
    [
        ("database is locked", sqlite3.SQLITE_BUSY, 503, "ResourceError"),
        ("database or disk is full", sqlite3.SQLITE_FULL, 507, "StorageFullError"),
    ],
)
def test_fault_of_the_database_is_a_problem_that_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cause: str, code: int, status: int, kind: str
) -> None:
    raised = sqlite3.OperationalError(cause)
    raised.sqlite_errorcode = code

    def begin(_: Engine) -> Any:
        raise OperationalError("BEGIN", {}, raised)

    async def run() -> None:
        async with jobs_app(tmp_path / "jobs") as client:
            job = (await client.post("/v1/jobs", content=SCAN)).json()["id"]
            await ended(client, job)
            with monkeypatch.context() as failing:
                failing.setattr(Engine, "begin", begin)
                for method, path in (
                    ("POST", "/v1/jobs"),
                    ("GET", "/v1/jobs"),
                    ("GET", f"/v1/jobs/{job}"),
                    ("GET", f"/v1/jobs/{job}/events"),
                    ("GET", f"/v1/jobs/{job}/results/0"),
                    ("DELETE", f"/v1/jobs/{job}"),
                    ("GET", "/v1/queue"),
                ):
                    response = await client.request(method, path, content=SCAN if method == "POST" else None)
                    problem = check_problem(response, status, kind)
                    assert "database" in problem["title"]
                    assert problem["do"]
                    assert ("retry-after" in response.headers) == (status == 503)
            assert (await client.get(f"/v1/jobs/{job}/results/0")).status_code == 200

    asyncio.run(run())


def test_files_are_kept_if_the_job_may_be_in_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As after a connection to the database that breaks while the job is committed."""
    accept = JobStore.accept

    def accept_and_lose(self: JobStore, new: NewJob) -> Accepted:
        accept(self, new)
        monkeypatch.undo()
        raise ResourceError("the job database is not available")

    async def run() -> None:
        async with jobs_app(tmp_path / "jobs") as client:
            monkeypatch.setattr(JobStore, "accept", accept_and_lose)
            key = {"Idempotency-Key": "a"}
            check_problem(await client.post("/v1/jobs", content=SCAN, headers=key), 503, "ResourceError")
            repeated = await client.post("/v1/jobs", content=SCAN, headers=key)
            assert repeated.headers["Idempotency-Replayed"] == "true"
            assert (await ended(client, repeated))["state"] == "done"

    asyncio.run(run())


def test_full_disk_is_a_507(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    async def run() -> None:
        async with jobs_app(tmp_path / "jobs") as client:
            monkeypatch.setattr(SealedWriter, "write", write)
            check_problem(await client.post("/v1/jobs", content=SCAN), 507, "StorageFullError")
            assert stored_files(tmp_path / "jobs") == []

    asyncio.run(run())


def test_volumes_are_encrypted_and_written_outside_the_event_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loops: list[threading.Thread] = []
    for kind, name in ((SealedWriter, "__init__"), (SealedWriter, "write"), (SealedWriter, "close")):
        original = getattr(kind, name)

        def recorded(*args: Any, original: Any = original, **options: Any) -> Any:
            loops.append(threading.current_thread())
            return original(*args, **options)

        monkeypatch.setattr(kind, name, recorded)
    large = OTHER + bytes(3 << 20)

    async def run() -> None:
        async with jobs_app(tmp_path / "jobs", Gate(), limit_bytes=8 << 20, at_once=1) as client:
            for body in ({"content": SCAN}, {"content": large}, {"files": form(SCAN, large)}):
                assert (await client.post("/v1/jobs", **body)).status_code == 202

    asyncio.run(run())
    assert len(loops) > 8
    assert threading.main_thread() not in loops


def test_admin_lists_reads_and_cancels_the_jobs_of_other_clients(tmp_path: Path) -> None:
    admin, station, other = {"X-Client": "admin"}, {"X-Client": "station"}, {"X-Client": "other"}

    async def run() -> None:
        async with jobs_app(tmp_path / "jobs") as client:
            accepted = await client.post("/v1/jobs", content=SCAN, headers=station)
            job = (await ended(client, accepted, **station))["id"]
            paths = [f"/v1/jobs/{job}", f"/v1/jobs/{job}/events", f"/v1/jobs/{job}/results/0"]
            for path in paths:
                assert (await client.get(path, headers=admin)).status_code == 200
                check_problem(await client.get(path, headers=other), 404, "NotFoundError")
            check_problem(await client.delete(paths[0], headers=other), 404, "NotFoundError")
            check_problem(await client.get("/v1/jobs?all=true", headers=other), 403, "ForbiddenError")
            for query, who, listed in (("", admin, []), ("?all=true", admin, ["station"]), ("", station, ["station"])):
                found = (await client.get(f"/v1/jobs{query}", headers=who)).json()["jobs"]
                assert [each["client"] for each in found] == listed
            assert (await client.delete(paths[0], headers=admin)).status_code == 200
            check_problem(await client.get(paths[2], headers=station), 404, "NotFoundError")

    asyncio.run(run())


def test_references_stay_below_the_allowed_folders(tmp_path: Path) -> None:
    data, outside = tmp_path / "data", tmp_path / "outside"
    for folder in (data / "sub", outside):
        folder.mkdir(parents=True)
        (folder / "scan.nii").write_bytes(OTHER)
    (data / "sub" / "first.nii").write_bytes(OTHER)
    (data / "link.nii").symlink_to(outside / "scan.nii")
    (data / "inside.nii").symlink_to(data / "sub" / "first.nii")
    (data / "text.nii").write_bytes(b"a sentence")
    os.mkfifo(data / "pipe")
    gate = Gate()

    async def run() -> None:
        async with jobs_app(tmp_path / "jobs", gate, roots=(data,), at_once=1) as client:

            async def post(*paths: Path | str) -> httpx.Response:
                return await client.post("/v1/jobs", json={"volumes": [{"path": str(path)} for path in paths]})

            refused = [
                outside / "scan.nii", data / "link.nii", data / ".." / "outside" / "scan.nii", data / "none.nii",
                data, data / "pipe", "scan.nii", "", "/" + "a" * 3000, data / "a\0b",
            ]  # fmt: skip
            for path in refused:
                problem = check_problem(await post(data / "inside.nii", path), 404, "NotFoundError")
                assert str(tmp_path) not in str(problem), "whether a file exists elsewhere is not disclosed"
            check_problem(await post(data / "text.nii"), 422, "VolumeError")
            accepted = await post(data / "inside.nii", data / "sub" / "scan.nii")
            await gate.started.wait()
            (data / "sub" / "scan.nii").write_bytes(SCAN)
            gate.open.set()
            job = await ended(client, accepted)
            assert [each["state"] for each in job["volumes"]] == ["done", "failed"]
            assert "changed after it was accepted" in job["volumes"][1]["problem"]["title"]

    asyncio.run(run())


def test_reference_that_changes_while_it_is_read_has_no_mask(tmp_path: Path) -> None:
    scan = tmp_path / "scan.nii"
    scan.write_bytes(OTHER)

    async def run() -> None:
        gate = Gate()
        async with jobs_app(tmp_path / "jobs", gate, roots=(tmp_path,)) as client:
            accepted = await client.post("/v1/jobs", json={"volumes": [{"path": str(scan)}]})
            await gate.started.wait()
            scan.write_bytes(SCAN)
            gate.open.set()
            job = await ended(client, accepted)
            assert "changed after it was accepted" in job["volumes"][0]["problem"]["title"]
            assert stored_files(tmp_path / "jobs") == []

    asyncio.run(run())


def test_damaged_store_fails_the_volume(tmp_path: Path) -> None:
    async def run() -> None:
        gate = Gate()
        async with jobs_app(tmp_path / "jobs", gate, at_once=1) as client:
            accepted = await client.post("/v1/jobs", files=form(SCAN, SCAN))
            await gate.started.wait()
            stored = tmp_path / "jobs" / "files" / accepted.json()["id"] / "input-1"
            stored.write_bytes(stored.read_bytes()[:-1])
            gate.open.set()
            job = await ended(client, accepted)
            assert [each["state"] for each in job["volumes"]] == ["done", "failed"]
            assert "modified or truncated" in job["volumes"][1]["problem"]["title"]

    asyncio.run(run())


@pytest.mark.parametrize("database", ["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)])
def test_two_gateways_on_one_store_share_the_work(
    tmp_path: Path, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with postgres() if database == "postgresql" else nullcontext() as url:
        if url is not None:
            monkeypatch.setenv(DATABASE_VARIABLE, url)
        share_the_work(tmp_path)


def share_the_work(tmp_path: Path) -> None:
    seen: list[str] = []

    async def run() -> None:
        def gateway(name: str) -> Segment:
            async def segment(content: bytes, request_id: str, report: Report) -> Prediction:
                seen.append(name)
                await asyncio.sleep(0.3)
                return await threshold(content, request_id, report)

            return segment

        # The other gateway looks for volumes once a second.
        async with (
            jobs_app(tmp_path / "jobs", gateway("first"), at_once=1) as client,
            jobs_app(tmp_path / "jobs", gateway("second"), at_once=1) as other,
        ):
            job = (await client.post("/v1/jobs", files=form(*[SCAN] * 10))).json()["id"]
            assert (await ended(other, job))["state"] == "done"
            assert (await other.get(f"/v1/jobs/{job}/results/9")).status_code == 200

    asyncio.run(run())
    assert len(seen) == 10
    assert set(seen) == {"first", "second"}


def test_endpoint_without_a_job_store_reports_it(tmp_path: Path) -> None:
    async def run() -> None:
        app = make_api(tmp_path, ServingConfig())
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test", headers=BEARER) as client:
            check_problem(await client.post("/v1/jobs", content=SCAN), 404, "NotFoundError")

    asyncio.run(run())


def test_results_are_removed_soon_after_they_expire(tmp_path: Path) -> None:
    async def run() -> None:
        async with jobs_app(tmp_path / "jobs", keep_h=1.0 / 3600) as client:
            job = await ended(client, await client.post("/v1/jobs", content=SCAN))
            await asyncio.sleep(1.6)
            check_problem(await client.get(f"/v1/jobs/{job['id']}"), 404, "NotFoundError")
            with sqlite3.connect(tmp_path / "jobs" / "jobs.db") as connection:
                assert connection.execute("SELECT count(*) FROM gtvray_jobs").fetchone() == (0,)

    asyncio.run(run())
