"""Volumes of jobs: the file that a replica reads, the client that is recorded, and volumes that kill replicas.

Everything is in this process; the replica is an object that reads the scan and writes the mask as a real one does.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx
from ray.exceptions import RayActorError

from gtvray.config import JobsConfig, ServingConfig
from gtvray.io import encode_nifti
from gtvray.serving.gateway.tokens import Role, TokenFile
from gtvray.serving.replica.quarantine import Journal
from gtvray.serving.transfer.spool import Body, Spool
from gtvray.serving.transfer.work import Work

from ..conftest import make_scan
from ..local_api import Behaviour, Replica, make_api
from .conftest import ended

SCANS = [encode_nifti(make_scan((20, 20, 20 + n)), compress=True) for n in range(3)]


@asynccontextmanager
async def endpoint(folder: Path, behaviour: Behaviour, spool: Spool, **jobs: Any) -> AsyncIterator[httpx.AsyncClient]:
    """The complete API with jobs, for a client named `station`."""
    token = TokenFile(folder / "tokens.json").add("station", Role.JOBS)
    app = make_api(folder, ServingConfig(jobs=JobsConfig(**jobs)), Replica(behaviour), spool, jobs=True)
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
    headers = {"Authorization": f"Bearer {token}"}
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://test", headers=headers, timeout=30) as client,
    ):
        yield client


def form(*scans: bytes) -> list[tuple[str, tuple[str, bytes]]]:
    return [("scan", ("scan.nii.gz", scan)) for scan in scans]


def audited(folder: Path) -> list[dict[str, Any]]:
    (log,) = (folder / "audit").iterdir()
    return [json.loads(line) for line in log.read_text().splitlines()]


def test_replica_reads_the_stored_or_named_file_itself(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "scan.nii.gz").write_bytes(SCANS[2])
    spool, seen, in_spool = Spool(tmp_path, 1, 1), list[Body](), set[str]()

    async def note(work: Work, content: bytes) -> None:
        seen.append(work.body)
        in_spool.update(path.suffix for path in spool.folder.iterdir())

    async def run() -> tuple[str, str]:
        async with endpoint(tmp_path, note, spool, at_once=1, roots=(tmp_path / "data",)) as client:
            named = {"volumes": [{"path": str(tmp_path / "data" / "scan.nii.gz")}]}
            jobs = [await ended(client, await client.post("/v1/jobs", files=form(*SCANS[:2])))]
            jobs.append(await ended(client, await client.post("/v1/jobs", json=named)))
            results = [volume["result"] for job in jobs for volume in job["volumes"]]
            masks = [(await client.get(result)).content for result in results]
            assert masks == [scan[::-1] for scan in SCANS]
            return jobs[0]["id"], jobs[1]["id"]

    stored, named = asyncio.run(run())
    folder = tmp_path / "jobs" / "files" / stored
    assert [body.path for body in seen] == [folder / "input-0", folder / "input-1", tmp_path / "data" / "scan.nii.gz"]
    assert [body.key is None for body in seen] == [False, False, True]
    assert ".body" not in in_spool, "and not a copy in the spool, which has space for one byte"
    lines = audited(tmp_path)
    read = [(entry["request"], entry["volume"]) for entry in lines if entry["outcome"] == "read"]
    assert read == [(stored, 0), (stored, 1), (named, 0)]
    entries = [entry for entry in lines if entry["outcome"] != "read"]
    assert {(entry["client"], entry["outcome"]) for entry in entries} == {("station", "segmented")}
    assert [entry["request"] for entry in entries] == [stored, stored, named]
    assert [entry["input"] for entry in entries] == [sha256(scan).hexdigest() for scan in SCANS]


def test_named_file_that_the_model_cannot_read_fails_its_volume(tmp_path: Path) -> None:
    scan = tmp_path / "scan.nii.gz"

    async def lose(work: Work, content: bytes) -> None:
        scan.unlink()
        with work.body.open():
            pass

    async def run() -> dict[str, Any]:
        scan.write_bytes(SCANS[0])
        async with endpoint(tmp_path, lose, Spool(tmp_path, 1, 1), roots=(tmp_path,)) as client:
            return await ended(client, await client.post("/v1/jobs", json={"volumes": [{"path": str(scan)}]}))

    problem = asyncio.run(run())["volumes"][0]["problem"]
    assert (problem["status"], problem["title"]) == (404, "a referenced file cannot be read on the node of the model")
    assert "scan.nii.gz" not in str(problem)


def test_volume_that_kills_replicas_fails_with_the_reason_and_the_others_complete(tmp_path: Path) -> None:
    """The other volume on a replica is lost when it dies."""
    calls, together = Counter[bytes](), asyncio.Event()

    async def die_of_the_second(work: Work, content: bytes) -> None:
        calls[content] += 1
        bad = content == SCANS[1]
        with Journal(work.journal) as journal:
            journal.write("patch 3" if bad else "scan")
            if bad:
                together.set()
                raise RayActorError
            if not together.is_set():
                await together.wait()
                raise RayActorError

    async def run() -> dict[str, Any]:
        spool = Spool(tmp_path, 1, 1)
        async with endpoint(tmp_path, die_of_the_second, spool, at_once=2) as client:
            job = await ended(client, await client.post("/v1/jobs", files=form(*SCANS)))
            for number in (0, 2):
                assert (await client.get(job["volumes"][number]["result"])).content == SCANS[number][::-1]
            again = await ended(client, await client.post("/v1/jobs", content=SCANS[1]))
            assert again["volumes"][0]["state"] == "failed"
            return job

    job = asyncio.run(run())
    assert (job["state"], [each["state"] for each in job["volumes"]]) == ("done", ["done", "failed", "done"])
    problem = job["volumes"][1]["problem"]
    assert problem["type"] == "urn:gtvray:DataError"
    assert problem["found"] == "2 replicas died at the same point: patch 3"
    assert calls == {SCANS[0]: 2, SCANS[1]: 2, SCANS[2]: 1}, "a refused volume is not processed in another job"
