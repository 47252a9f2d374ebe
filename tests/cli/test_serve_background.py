"""`gtvray serve start`, `status`, `logs` and `stop`: an endpoint that outlives the command that started it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest

from gtvray.api import Endpoint, background_endpoints
from gtvray.cli.serve import _start_text
from gtvray.client import Client, Retry
from gtvray.config import Config
from gtvray.inference import Predictor
from gtvray.io import Workspace
from gtvray.models import Bundle
from gtvray.runtime import Process, port_is_free, start_service
from gtvray.serving.request_log import LOGGER, gateway_log, log_event, log_to_file
from gtvray.serving.versions.pointer import Pointer, RejectedVersion, ServedVersion, Versions

from ..bundles import random_bundle
from ..ports import free_port
from ..serving.conftest import make_scan
from .command import Finished, call, run

TOKEN = {"GTVRAY_TOKEN": "a-test-token"}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return random_bundle(tmp_path_factory.mktemp("a model") / "bundle")


def started(*words: object, **environment: str) -> Finished:
    """Like `run`, for a command whose processes may outlive it."""
    command = [sys.executable, "-m", "gtvray", *map(str, words)]
    kept = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=280, check=False, env=kept | TOKEN | environment
    )
    return Finished(done.returncode, done.stdout, done.stderr)


def recorded(workspace: Path, process: Process, port: int = 8123, host: str | None = None) -> Path:
    """Write the state of an endpoint as `start` does."""
    state = workspace / "serving" / f"background-{port}.json"
    state.parent.mkdir(parents=True, exist_ok=True)
    stored = {
        "url": f"http://127.0.0.1:{port}",
        "port": port,
        "host": host or socket.gethostname(),
        "process": {"pid": process.pid, "since": process.since},
        "mark": "a-mark-of-no-process",
        "started_at": "2026-01-31T09:12:33+00:00",
        "drain_s": 0.1,
    }
    state.write_text(json.dumps(stored))
    return state


@pytest.fixture
def sleeping(tmp_path: Path) -> Iterator[Process]:
    """A process that was not started by `gtvray serve start`."""
    process = start_service(
        [sys.executable, "-c", "import time; time.sleep(100)"], os.environ, tmp_path / "log", "another-mark"
    )
    yield process
    process.send(signal.SIGKILL)


def test_process_that_has_the_id_of_an_ended_endpoint_is_not_stopped(tmp_path: Path, sleeping: Process) -> None:
    state = recorded(tmp_path, Process(sleeping.pid, sleeping.since - 1))
    assert "has ended" in call("serve", "status", "--workspace", tmp_path).stdout
    assert "had already ended" in call("serve", "stop", "--workspace", tmp_path).stdout
    assert sleeping.is_alive
    assert not state.exists()


def test_endpoint_of_another_machine_is_left_alone(tmp_path: Path, sleeping: Process) -> None:
    recorded(tmp_path, sleeping, host="elsewhere.example.org")
    assert "runs on another machine" in call("serve", "stop", "--workspace", tmp_path).error(code=2)
    refused = call("serve", "start", "--workspace", tmp_path, "--port", 8123).error(code=1)
    assert f"process {sleeping.pid} on elsewhere.example.org since 2026-01-31" in refused
    assert sleeping.is_alive


def test_second_endpoint_on_a_port_of_a_workspace_is_refused_by_name(tmp_path: Path, sleeping: Process) -> None:
    recorded(tmp_path, sleeping)
    refused = call("serve", "start", "--workspace", tmp_path, "--port", 8123).error(code=1)
    assert f"process {sleeping.pid} on {socket.gethostname()} since 2026-01-31" in refused
    assert "gtvray serve stop --port 8123" in refused


def test_one_of_several_endpoints_must_be_selected(tmp_path: Path) -> None:
    assert "no endpoint was started" in call("serve", "stop", "--workspace", tmp_path).error(code=2)
    gone = Process(2**22 + 1, 1)
    first, second = recorded(tmp_path, gone, 8123), recorded(tmp_path, gone, 8124)
    assert "ports 8123, 8124" in call("serve", "stop", "--workspace", tmp_path).error(code=2)
    assert "on port 9" in call("serve", "logs", "--workspace", tmp_path, "--port", 9).error(code=2)
    first.with_suffix(".log").write_text("began\nerror: no memory\n  found: 1 GB\n")
    assert call("serve", "logs", "--workspace", tmp_path, "--port", 8123).stdout.endswith("found: 1 GB\n")
    found = call("serve", "status", "--workspace", tmp_path, "--port", 8123, "--json")
    assert (found.code, found.json()["reason"]) == (1, "it has ended: no memory; found: 1 GB")
    assert call("serve", "stop", "--workspace", tmp_path, "--port", 8124).code == 0
    assert (first.exists(), second.exists()) == (True, False)


@pytest.mark.slow
def test_missing_model_is_reported_before_a_process_is_started(tmp_path: Path) -> None:
    found = call("serve", "start", "--workspace", tmp_path / "w", "--port", free_port())
    assert "promoted" in found.error(code=1)
    assert background_endpoints(tmp_path / "w") == []


def test_start_reports_the_version_that_is_served_in_place_of_a_rejected_champion(tmp_path: Path) -> None:
    endpoint = object.__new__(Endpoint)  # without a registry
    endpoint.follows, endpoint._workspace, endpoint._config = True, Workspace(tmp_path), Config()
    (tmp_path / "serving").mkdir()
    rejected = RejectedVersion("4", "d", "a golden case is not reproduced", "2026-01-31T09:12:33+00:00")
    Pointer(tmp_path / "serving" / "8000.json").write(Versions(ServedVersion("app", "3", "c"), rejected=(rejected,)))
    served = endpoint.served()
    assert served.current is not None
    shown = {"version": served.current.version, "rejected": [{"version": "4", "reason": rejected.reason}]}
    text = _start_text(
        {"url": "u", "pid": 1, "log": "l", "golden": True, "away": "", "token": None, "stop": "s", **shown}, True
    )
    assert text.startswith("serving version 3 and every later champion")
    assert "version 4 is rejected: a golden case is not reproduced" in text


def test_logs_have_the_lines_of_requests(tmp_path: Path, sleeping: Process) -> None:
    recorded(tmp_path, sleeping)
    folder = tmp_path / "serving"
    assert "has no log" in call("serve", "logs", "--workspace", tmp_path).error(code=2)
    (folder / "background-8123.log").write_text("serving version 3\n")
    handlers = list(LOGGER.handlers)
    log_to_file(gateway_log(folder, 8123))
    log_event("request", "0" * 32, method="POST", route="/v1/segment", status=200, ms=12, version="3")
    for added in set(LOGGER.handlers) - set(handlers):
        LOGGER.removeHandler(added)
        added.close()
    first, second = call("serve", "logs", "--workspace", tmp_path).stdout.splitlines()
    assert first == "serving version 3"
    assert second.endswith(f"event=request request={'0' * 32} method=POST route=/v1/segment status=200 ms=12 version=3")


def metrics(url: str) -> str:
    headers = {"Authorization": f"Bearer {TOKEN['GTVRAY_TOKEN']}"}
    return httpx.get(f"{url}/metrics", headers=headers, trust_env=False).text


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(400)
def test_start_status_logs_stop(bundle: Bundle, tmp_path: Path) -> None:
    workspace, port = tmp_path / "a work space", free_port()
    words = ("--workspace", workspace, "--port", port)
    first = started("serve", "start", "-m", bundle.folder, *words, "--json")
    assert first.code == 0, first
    found = first.json()
    try:
        assert Process(found["pid"], 0).pid == background_endpoints(workspace)[0].process.pid
        assert found["token"] is None
        second = call("serve", "start", "-m", bundle.folder, *words).error(code=1)
        assert f"process {found['pid']}" in second
        assert f"in the background: process {found['pid']}" in run("serve", "status", *words[:2], **TOKEN).stdout
        shown = run("serve", "logs", *words[:2]).stdout
        assert f"at http://127.0.0.1:{port} until" in shown
        assert "route=/readyz status=200" in shown

        # A request in progress gets its mask.
        scan, masks = make_scan((160, 160, 120)), []
        with Client(found["url"], TOKEN["GTVRAY_TOKEN"], retry=Retry(attempts=1)) as client:
            sent = threading.Thread(target=lambda: masks.append(client.segment(scan).mask.array))
            sent.start()
            while "gtvray_scans_in_progress 1.0" not in metrics(found["url"]):
                time.sleep(0.05)
            done = run("serve", "stop", *words[:2], "--json")
            sent.join(100)
        assert (done.code, done.json()["was_running"], done.json()["killed"]) == (0, True, 0)
        assert np.array_equal(masks[0], Predictor(bundle, threads=1).predict(scan).array)
    finally:
        run("serve", "stop", *words[:2])
    left = {path.name for path in (workspace / "serving").iterdir() if not path.name.startswith(("audit-", "gateway-"))}
    assert left == {f"background-{port}.log", "jobs"}
    assert port_is_free("127.0.0.1", port)


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(400)
def test_endpoint_that_cannot_start_gives_its_reason_and_leaves_nothing(bundle: Bundle, tmp_path: Path) -> None:
    words = ("--workspace", tmp_path / "w", "--port", free_port(), "--address", f"127.0.0.1:{free_port()}")
    error = started("serve", "start", "-m", bundle.folder, *words).error(code=1)
    assert "the endpoint did not start" in error
    assert "cannot connect to Ray; where: 127.0.0.1" in error
    assert background_endpoints(tmp_path / "w") == []
