"""`gtvray cluster up|status|down`: real processes, private tokens, and no process or file left behind."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gtvray.models import Bundle
from gtvray.runtime import Process, start_service, stop_service

from ..bundles import random_bundle
from ..cli.command import Finished, call, run
from ..databases import postgres
from ..ports import free_port


def test_a_program_and_its_orphans_are_stopped(tmp_path: Path) -> None:
    """One child ignores SIGTERM and has lost its parent; another program with the same command line keeps running."""
    ignore = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN)"
    stubborn = f"{ignore}; print('up', flush=True); time.sleep(60)"
    child = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {stubborn!r}], start_new_session=True)"
    parent = f"import subprocess, sys, time; subprocess.run([sys.executable, '-c', {child!r}]); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", stubborn], stdout=subprocess.PIPE) as other:
        process = start_service([sys.executable, "-c", parent], os.environ, tmp_path / "log", "secret-mark")
        while "up" not in (tmp_path / "log").read_text():
            time.sleep(0.05)
        assert process.is_alive
        assert not Process(process.pid, process.since + 1).is_alive
        assert stop_service(process, "secret-mark", 5, kill_s=0.5) == 1
        assert not process.is_alive
        assert other.poll() is None
        other.kill()


def test_ports_are_checked_before_anything_starts(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        words = ("cluster", "up", "--folder", tmp_path / "state", "--workspace", tmp_path / "runs", "--port", port)
        others = ("--ray-port", free_port(), "--dashboard-port", free_port(), "--mlflow-port", free_port())
        assert f"127.0.0.1:{port}" in call(*words, *others).error(code=1)
    assert list(tmp_path.iterdir()) == []
    assert "nothing was running" in call("cluster", "down", "--folder", tmp_path / "state").stdout
    assert call("cluster", "status", "--folder", tmp_path / "state").code == 0


class Local:
    """The cluster commands with a separate folder and ports."""

    def __init__(self, folder: Path) -> None:
        self.state, self.workspace = folder / "state", folder / "runs"
        self.ports = [free_port() for _ in range(4)]

    def up(self, *words: object) -> Finished:
        names = ("--ray-port", "--dashboard-port", "--mlflow-port", "--port")
        ports = [word for pair in zip(names, self.ports, strict=True) for word in pair]
        return started("cluster", "up", "--folder", self.state, "--workspace", self.workspace, "--json", *ports, *words)

    def status(self) -> Finished:
        return run("cluster", "status", "--folder", self.state, "--json")

    def states(self) -> dict[str, str]:
        return {each["service"]: each["state"] for each in self.status().json()["services"]}

    def down(self) -> Finished:
        return run("cluster", "down", "--folder", self.state, "--json")


def started(*words: object) -> Finished:
    """Like `run`, for a command whose processes may outlive it."""
    command = [sys.executable, "-m", "gtvray", *map(str, words)]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False, env=environment)
    return Finished(done.returncode, done.stdout, done.stderr)


@pytest.fixture
def local(tmp_path: Path) -> Iterator[Local]:
    made = Local(tmp_path)
    yield made
    made.down()


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return random_bundle(tmp_path_factory.mktemp("local") / "bundle")


def processes_with(text: str) -> list[str]:
    """Command lines of the processes that have a text in their environment or command line."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            line = (entry / "cmdline").read_text().replace("\0", " ")
            if int(entry.name) != os.getpid() and text in line + (entry / "environ").read_text(errors="replace"):
                found.append(line)
        except OSError:
            continue
    return found


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(400)
def test_up_status_down(local: Local, bundle: Bundle, phantoms: Path, tmp_path: Path) -> None:
    # Before a promotion there is nothing to serve.
    first = local.up("--cpus", "2")
    assert first.code == 0, first
    found: Any = first.json()
    assert {each["service"]: each["state"] for each in found["services"]} == {
        "ray": "healthy",
        "mlflow": "healthy",
        "endpoint": "stopped",
    }
    assert [each["detail"] for each in found["services"][2:]] == ["no model has been promoted, or it was not requested"]
    token = Path(found["ray_token"])
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    assert stat.S_IMODE(local.state.stat().st_mode) == 0o700

    # Running services are left unchanged, and the endpoint is started.
    second = local.up("-m", bundle.folder)
    assert second.code == 0, second
    again = second.json()
    assert [each["pid"] for each in again["services"][:2]] == [each["pid"] for each in found["services"][:2]]
    assert set(local.states().values()) == {"healthy"}
    assert stat.S_IMODE(Path(again["endpoint_token"]).stat().st_mode) == 0o600
    mask, url = tmp_path / "mask.nii.gz", f"http://127.0.0.1:{local.ports[3]}"
    secret = {"GTVRAY_TOKEN": Path(again["endpoint_token"]).read_text()}
    assert run("predict", phantoms / "1" / "data.nii.gz", "-o", mask, "--server", url, **secret).code == 0
    auth = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
    dashboard = f"http://127.0.0.1:{local.ports[1]}"
    assert run("submit", "--address", dashboard, "--", "doctor", "--json", **auth).code in (0, 1)

    # A service that dies is reported, and restarted by `up`.
    os.kill(again["services"][1]["pid"], signal.SIGKILL)
    deadline = time.monotonic() + 20
    while local.states()["mlflow"] != "ended":
        assert time.monotonic() < deadline
    assert local.status().code == 1
    assert local.up("-m", bundle.folder).code == 0
    assert set(local.states().values()) == {"healthy"}

    assert processes_with(str(token))
    done = local.down()
    assert (done.code, done.json()["stopped"]) == (0, ["ray", "mlflow", "endpoint"])
    assert processes_with(str(token)) == []
    assert sorted(path.name for path in local.state.iterdir()) == ["logs"]
    for port in local.ports:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_mlflow_runs_on_postgresql(local: Local) -> None:
    import psycopg

    with postgres() as uri:
        found = local.up("--database", uri, "--no-endpoint", "--cpus", "1")
        assert found.code == 0, found
        assert local.states() == {"ray": "healthy", "mlflow": "healthy", "endpoint": "stopped"}
        with psycopg.connect(uri) as connection:
            assert connection.execute("SELECT count(*) FROM experiments").fetchone() == (1,)
        # It may contain a password, and command lines are visible to all users.
        assert not [line for line in processes_with(uri) if uri in line]
        assert local.down().code == 0
    assert not local.workspace.joinpath("mlflow.db").exists()
