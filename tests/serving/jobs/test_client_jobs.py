"""Jobs by the Python client, through a real HTTP server that is stopped and started again."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from gtvray.client import AsyncClient, Client, JobDocument, Retry
from gtvray.errors import ConflictError, DeadlineError, FailureError, GtvrayError, InputError, NotFoundError
from gtvray.io import decode_volume, write_volume
from gtvray.serving.transfer.work import Prediction

from ...ports import free_port
from ..client.test_client_retry import running
from ..conftest import make_scan
from .conftest import TOKEN, Report, build_jobs_app, threshold

SCANS = [make_scan((12 + n, 14, 16), seed=n) for n in range(3)]
FAST = Retry(attempts=100, first_s=0.05, longest_s=0.1)


class Held:
    """A model that blocks until it is released by another thread, and rejects volumes of one size."""

    def __init__(self) -> None:
        self.open = threading.Event()

    async def __call__(self, content: bytes, request_id: str, report: Report) -> Prediction:
        report(1, 4)
        while not self.open.is_set():
            await asyncio.sleep(0.01)
        if decode_volume(content).shape[0] == 13:
            raise InputError("not a CT")
        return await threshold(content, request_id, report)


@pytest.fixture
def held() -> Held:
    return Held()


@pytest.fixture
def client(tmp_path: Path, held: Held) -> Iterator[Client]:
    app = build_jobs_app(tmp_path / "jobs", held, roots=(tmp_path,))
    with running(app) as url, Client(url, TOKEN) as client:
        yield client


def test_results_of_a_job(client: Client, held: Held, tmp_path: Path) -> None:
    write_volume(tmp_path / "Doe John.nii", SCANS[0])
    scans = [tmp_path / "Doe John.nii", *SCANS[1:]]
    job = client.submit(scans, priority="high")
    assert (job.state, job.priority, len(job.volumes)) in (("queued", "high", 3), ("running", "high", 3))
    with pytest.raises(ConflictError):
        client.result(job.id, 0)
    with pytest.raises(DeadlineError, match="has not ended"):
        client.wait(job.id, timeout_s=0.0)
    held.open.set()
    seen: list[JobDocument] = []
    done = client.wait(job.id, on_change=seen.append)
    assert (done.state, seen[-1]) == ("done", done)
    outcomes = dict(client.results(job.id, scans=scans))
    for number in (0, 2):
        outcome = outcomes[number]
        assert not isinstance(outcome, GtvrayError)
        assert np.array_equal(outcome.mask.array, SCANS[number].array > 0)
        assert outcome.request_id == job.id
    assert isinstance(outcomes[1], InputError)
    assert outcomes[1].what == "not a CT"
    with pytest.raises(FailureError, match="not on the grid"):
        client.result(job.id, 0, scan=SCANS[2])
    assert [each.id for each in client.jobs()] == [job.id]
    assert client.queue().running == 0
    client.cancel(job.id)
    with pytest.raises(NotFoundError):
        client.result(job.id, 0)


def test_server_reads_scans_itself(client: Client, held: Held, tmp_path: Path) -> None:
    held.open.set()
    write_volume(tmp_path / "scan.nii.gz", SCANS[0])
    job = client.submit_paths([tmp_path / "scan.nii.gz"])
    ((_, outcome),) = client.results(job.id, scans=[SCANS[0]])
    assert not isinstance(outcome, GtvrayError)
    with pytest.raises(NotFoundError, match="below an allowed folder"):
        client.submit_paths(["/etc/hostname"])
    with pytest.raises(InputError, match="at least one scan"):
        client.submit([])


def test_events_and_cancel(client: Client) -> None:
    job = client.submit(SCANS)
    states = []
    for seen in client.events(job.id):
        states.append(seen.state)
        if seen.percent > 0:
            client.cancel(job.id)
    assert states[-1] == "cancelled"
    with pytest.raises(NotFoundError):
        list(client.events("0" * 32))


def test_same_key_is_the_same_job(client: Client) -> None:
    assert client.submit(SCANS, idempotency_key="a").id == client.submit(SCANS, idempotency_key="a").id
    assert client.submit(SCANS).id != client.submit(SCANS).id
    with pytest.raises(InputError, match="used for another request"):
        client.submit(SCANS[:1], idempotency_key="a")


def test_waiting_continues_across_a_server_restart(tmp_path: Path) -> None:
    port, held = free_port(), Held()
    url = f"http://127.0.0.1:{port}"

    async def watch(job_id: str) -> tuple[JobDocument, list[JobDocument]]:
        async with AsyncClient(url, TOKEN, retry=FAST) as client:
            waiting = asyncio.create_task(client.wait(job_id))
            return [event async for event in client.events(job_id)][-1], [await waiting]

    found: list[tuple[JobDocument, list[JobDocument]]] = []
    with Client(url, TOKEN, retry=FAST) as client:
        with running(build_jobs_app(tmp_path / "jobs", held), port):
            job = client.submit(SCANS)
            watcher = threading.Thread(target=lambda: found.append(asyncio.run(watch(job.id))))
            watcher.start()
            next(client.events(job.id))
        held.open.set()
        with running(build_jobs_app(tmp_path / "jobs", held), port):
            watcher.join(60)
            ((last, (waited,)),) = found
            assert last == waited == client.job(job.id)
            assert [each.state for each in last.volumes] == ["done", "failed", "done"]
