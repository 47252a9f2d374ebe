"""Checks of a host, each with its advice, and free ports."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gtvray.errors import ResourceError
from gtvray.runtime import Finding, examine_host, host, port_is_free, processor_name, require_port, temporary

from ..namespaces import as_nameless_user

EXAMINE = """
import json, resource, sys
from pathlib import Path
from gtvray.runtime import examine_host
for name, value in json.loads(sys.argv[2]).items():
    resource.setrlimit(getattr(resource, name), (value, value))
print(json.dumps({found.check: [found.ok, found.found, found.do] for found in examine_host(Path(sys.argv[1]))}))
"""


def examined(
    workspace: Path, prefix: list[str] | None = None, limits: dict[str, int] | None = None, **changes: str | None
) -> Any:
    """Findings of a new process, with environment variables set or (None) removed."""
    variables = {name: value for name, value in {**os.environ, **changes}.items() if value is not None}
    command = [*(prefix or []), sys.executable, "-c", EXAMINE, str(workspace), json.dumps(limits or {})]
    return json.loads(subprocess.run(command, env=variables, check=True, capture_output=True, text=True).stdout)


def in_tree(root: Path, workspace: Path) -> dict[str, Finding]:
    """Findings with proc, sys and dev in a folder."""
    return {found.check: found for found in examine_host(workspace, root)}


def test_suitable_host_has_no_advice(tmp_path: Path) -> None:
    found = examined(tmp_path, HOME=str(tmp_path), TMPDIR=None, RAY_TMPDIR=None)
    assert all(ok for ok, *_ in found.values())
    assert all(found[check][2] is None for check in ("home", "disk", "temporary files", "locale"))


@pytest.mark.parametrize(
    ("changes", "check", "found", "do"),
    [
        ({"HOME": None, "USER": None, "LOGNAME": None}, "home", "HOME is not set", "set HOME"),
        ({"HOME": None, "USER": None, "LOGNAME": None}, "user", "uid 12345 has no entry", "set USER"),
        ({"HOME": "/etc/passwd"}, "home", "under HOME=/etc/passwd are not writable", "set HOME"),
        ({"TMPDIR": "/etc/none/none"}, "temporary files", "/etc/none/none is missing or", "correct TMPDIR"),
        ({"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, "locale", "ascii", "LC_ALL=C.UTF-8"),
    ],
)
def test_container_defects_are_reported_with_advice(
    tmp_path: Path, changes: dict[str, str | None], check: str, found: str, do: str
) -> None:
    ok, what, advice = examined(tmp_path, as_nameless_user(), **changes)[check]
    assert ok
    assert found in what
    assert do in advice


def test_long_temporary_folder_is_reported(tmp_path: Path) -> None:
    scratch = tmp_path / ("x" * 100)
    scratch.mkdir()
    ok, what, advice = examined(tmp_path, TMPDIR=str(scratch), RAY_TMPDIR=None)["temporary files"]
    assert ok
    assert "too long for Ray's sockets" in what
    assert "TMPDIR" in advice


@pytest.mark.parametrize(
    ("limits", "ok", "check"),
    [
        ({"RLIMIT_NOFILE": 200}, False, "open files"),
        ({"RLIMIT_NOFILE": 2048}, True, "open files"),
        ({"RLIMIT_NPROC": 500}, True, "threads"),
    ],
)
def test_low_limits_are_reported(tmp_path: Path, limits: dict[str, int], ok: bool, check: str) -> None:
    found = examined(tmp_path, limits=limits)[check]
    assert found[0] == ok
    assert str(next(iter(limits.values()))) in found[1]
    assert "ulimit" in found[2]


def test_unwritable_workspace_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    ok, what, advice = examined(tmp_path / "file" / "runs")["disk"]
    assert not ok
    assert "is not writable" in what
    assert "--workspace" in advice


def test_missing_proc_and_shared_memory_and_low_limits_are_reported(tmp_path: Path) -> None:
    (tmp_path / "sys/fs/cgroup").mkdir(parents=True)
    (tmp_path / "sys/fs/cgroup/memory.max").write_text("1000000000\n")
    (tmp_path / "sys/fs/cgroup/cpu.max").write_text("100000 100000\n")
    found = in_tree(tmp_path, tmp_path)
    assert (found["proc"].ok, found["memory"].ok, found["shared memory"].ok) == (False, False, True)
    assert "limited to 1.0 GB" in found["memory"].found
    assert "--shm-size" in str(found["shared memory"].do)
    assert found["CPUs"].found.startswith("1")


def test_insufficient_temporary_or_shared_space_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "dev/shm").mkdir(parents=True)
    monkeypatch.setattr(host, "_NEED_TEMP_GB", 1e9)
    monkeypatch.setattr(host, "_NEED_SHARED_GB", 1e9)
    found = in_tree(tmp_path, tmp_path)
    assert (found["temporary files"].ok, found["shared memory"].ok) == (False, True)
    assert "set TMPDIR" in str(found["temporary files"].do)
    assert "--shm-size" in str(found["shared memory"].do)


def test_missing_temporary_folder_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing() -> str:
        raise FileNotFoundError(2, "No usable temporary directory found in ['/tmp']")

    monkeypatch.setenv("TMPDIR", "/etc/passwd/none")
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setattr(temporary.tempfile, "gettempdir", nothing)
    found = in_tree(tmp_path, tmp_path)["temporary files"]
    assert not found.ok
    assert "set TMPDIR" in str(found.do)


def test_port_in_use_is_rejected() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert not port_is_free("127.0.0.1", port)
        with pytest.raises(ResourceError) as caught:
            require_port("127.0.0.1", port, "--port")
        assert str(port) in caught.value.fields["where"]
        assert "--port" in caught.value.fields["do"]
    assert port_is_free("127.0.0.1", port)
    require_port("127.0.0.1", port, "--port")


def test_port_in_time_wait_is_free() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)):
            # The side that closes first enters TIME_WAIT.
            server.accept()[0].close()
    assert port_is_free("127.0.0.1", port)


def test_foreign_address_has_no_free_port() -> None:
    assert not port_is_free("203.0.113.1", 8000)


def test_processor_is_named(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    assert processor_name(tmp_path), "an architecture, without a model name"
    cpuinfo = tmp_path / "proc" / "cpuinfo"
    cpuinfo.write_text("processor\t: 0\nmodel name\t: Example CPU @ 2.00GHz\n")
    assert processor_name(tmp_path).startswith("Example CPU @ 2.00GHz (")
    cpuinfo.write_text("processor\t: 0\n")
    assert processor_name(tmp_path) == processor_name(tmp_path / "missing")
