"""Jobs of the endpoint end to end, on a local Ray: masks, progress, cancelling, and the loss of replicas."""

from __future__ import annotations

import gzip
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from gtvray.inference import Predictor
from gtvray.io import decode_nifti, encode_nifti, read_volume, write_volume
from gtvray.models import Bundle
from gtvray.serving import RemoteResult, Server

from ...cli.command import run
from ...conftest import REPOSITORY
from ..conftest import TOKEN, log_lines, make_scan, wait_for_log
from ..test_endpoint import replicas

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def server(start: Callable[..., Server], bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Server:
    return start(bundle, jobs_dir=tmp_path_factory.mktemp("jobs"))


@pytest.fixture
def http(server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, headers={"Authorization": f"Bearer {TOKEN}"}, timeout=100) as client:
        yield client


def wait_for(http: httpx.Client, job: str, condition: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        try:
            response = http.get(f"/v1/jobs/{job}")
        except httpx.TransportError:
            response = httpx.Response(503)
        if response.status_code == 200 and condition(found := response.json()):
            return found
        time.sleep(0.1)
    pytest.fail(f"the job did not reach the expected state: {found}")


def has_ended(job: dict[str, Any]) -> bool:
    return job["ended_at"] is not None


@pytest.mark.slow
def test_masks_of_a_job_equal_offline_masks(http: httpx.Client, bundle: Bundle) -> None:
    scans = [make_scan((40 + 6 * n, 44, 30), seed=n) for n in range(3)]
    files = [("scan", (f"{n}.nii.gz", encode_nifti(scan, compress=True))) for n, scan in enumerate(scans)]
    accepted = http.post("/v1/jobs", files=files)
    assert accepted.status_code == 202
    job = wait_for(http, accepted.json()["id"], has_ended)
    assert job["state"] == "done", job
    offline = Predictor(bundle, threads=1)
    for volume, scan in zip(job["volumes"], scans, strict=True):
        mask = decode_nifti(gzip.decompress(http.get(volume["result"]).content))
        assert mask.same_grid(scan)
        assert np.array_equal(mask.array, offline.predict(scan).array)
    assert http.get("/v1/queue").json()["expected_wait_s"] >= 0


@pytest.mark.slow
def test_cancelled_job_leaves_the_patch_loop(http: httpx.Client, large_scan: bytes) -> None:
    job = http.post("/v1/jobs", content=large_scan).json()["id"]
    seen = wait_for(http, job, lambda found: found["percent"] > 0)
    assert 0 < seen["percent"] < 100
    assert http.delete(f"/v1/jobs/{job}").json()["state"] == "cancelled"
    wait_for_log("Model", f"event=cancelled request={job}")
    assert not log_lines("Model", f"event=predicted request={job}")


@pytest.mark.slow
def test_job_survives_the_loss_of_a_model_replica(http: httpx.Client, bundle: Bundle) -> None:
    scan = make_scan((100, 100, 80))
    job = http.post("/v1/jobs", content=encode_nifti(scan, compress=True)).json()["id"]
    wait_for(http, job, lambda found: found["percent"] > 0)
    os.kill(replicas()["Model"], signal.SIGKILL)
    found = wait_for(http, job, has_ended)
    assert found["state"] == "done", found
    mask = decode_nifti(gzip.decompress(http.get(f"/v1/jobs/{job}/results/0").content))
    assert np.array_equal(mask.array, Predictor(bundle, threads=1).predict(scan).array)


@pytest.mark.slow
def test_examples_of_the_guide_work(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    scan = make_scan((30, 30, 20))
    for name in ("scan", "first", "second"):
        write_volume(tmp_path / f"{name}.nii.gz", scan)
    guide = (REPOSITORY / "docs" / "guide-serving.md").read_text().replace("http://127.0.0.1:8000", server.url)
    blocks = re.findall(r"```(sh|python)\n(.*?)```", guide, re.DOTALL)
    shell = "\n".join(code for kind, code in blocks if kind == "sh" and "curl" in code)
    assert shell.count("curl") >= 8
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", shell],
        env={**os.environ, "GTVRAY_TOKEN": TOKEN},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "event: end" in done.stdout
    assert read_volume(tmp_path / "mask.nii.gz").same_grid(scan)
    names: dict[str, object] = {"token": TOKEN, "print": lambda *_: None}
    python = [code for kind, code in blocks if kind == "python" and "Client(" in code]
    assert len(python) >= 2
    for code in python:
        exec(code, names)
    assert isinstance(names["result"], RemoteResult)
    assert isinstance(names["outcome"], RemoteResult)


@pytest.mark.slow
def test_status_of_a_running_endpoint(server: Server) -> None:
    found = run("serve", "status", "--server", server.url, "--json", GTVRAY_TOKEN=TOKEN)
    assert found.code == 0, found
    status = found.json()
    assert (status["ready"], status["golden"], status["models"]["current"]["version"]) == (True, "none", "7")
    assert status["queue"]["queued"] == 0
    assert "serves version 7" in run("serve", "status", "--server", server.url, GTVRAY_TOKEN=TOKEN).stdout
