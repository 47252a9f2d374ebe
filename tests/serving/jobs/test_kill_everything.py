"""Every process of an endpoint is killed in the middle of jobs, and the endpoint is started again on its workspace."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from gtvray.client import Client, Retry
from gtvray.errors import GtvrayError
from gtvray.failpoints import ONCE_VARIABLE, VARIABLE
from gtvray.inference import Predictor
from gtvray.models import Bundle

from ...cli.command import Running
from ...ports import free_port
from ..conftest import TOKEN, make_scan

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]
PATIENT = Retry(attempts=1000, first_s=0.2, longest_s=1.0, total_s=150.0, first_contact_s=150.0)
# Each kills the API's process once, over both starts.
FAULTS = "jobs.durable=kill,jobs.accepted=kill,jobs.claimed=kill,jobs.written=kill,jobs.finished=kill"


@contextmanager
def endpoint(workspace: Path, bundle: Bundle, port: int, faults: Path) -> Iterator[None]:
    """`gtvray serve` in processes of its own, which are all killed at the end of the block."""
    environment = {"GTVRAY_TOKEN": TOKEN, VARIABLE: FAULTS, ONCE_VARIABLE: str(faults)}
    served = Running("serve", "--model", bundle.folder, "--workspace", workspace, "--port", port, **environment)
    try:
        served.wait_for("serving version", within_s=150)
        yield
    finally:
        served.kill_all()


def test_every_accepted_job_ends_with_the_offline_masks(bundle: Bundle, tmp_path: Path) -> None:
    workspace, faults, port = tmp_path / "workspace", tmp_path / "faults", free_port()
    workspace.mkdir()
    faults.mkdir()
    small = [make_scan((40 + 6 * n, 44, 30), seed=n) for n in range(4)]
    large = [make_scan((100, 100, 80), seed=seed) for seed in (7, 8, 9)]
    with Client(f"http://127.0.0.1:{port}", TOKEN, retry=PATIENT) as client:
        with endpoint(workspace, bundle, port, faults):
            jobs = [client.submit(small, idempotency_key="small"), client.submit(large)]
            client.wait(jobs[0].id)
            assert client.job(jobs[1].id).state == "running", "in the middle of the large scans"
        with endpoint(workspace, bundle, port, faults):
            assert client.submit(small, idempotency_key="small").id == jobs[0].id
            ended = [client.wait(job.id) for job in jobs]
            assert len(client.jobs()) == 2, "a lost answer did not create another job"
            offline = Predictor(bundle, threads=1)
            for job, scans in zip(ended, (small, large), strict=True):
                assert job.state == "done", job
                for number, outcome in client.results(job.id, scans=scans):
                    assert not isinstance(outcome, GtvrayError), outcome
                    assert np.array_equal(outcome.mask.array, offline.predict(scans[number]).array)
    acted = sorted(path.name for path in faults.iterdir())
    assert acted == sorted(fault.replace(".", "-").replace("=", "-") for fault in FAULTS.split(","))
    for job, scans in zip(jobs, (small, large), strict=True):
        stored = sorted(path.name for path in (workspace / "serving" / "jobs" / "files" / job.id).iterdir())
        assert [name.rpartition("-")[0] for name in stored if name.startswith("mask")] == [
            f"mask-{number}" for number in range(len(scans))
        ], "one mask each"
