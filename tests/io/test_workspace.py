"""Paths of a workspace, its locks, and cleanup after a killed writer."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from gtvray.errors import ResourceError
from gtvray.io import Workspace, append_json_line


def test_relative_root_is_resolved_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    workspace = Workspace(Path("runs"))
    monkeypatch.chdir("/")
    assert workspace.cache == tmp_path / "runs" / "cache"
    assert workspace.mlflow_uri == f"sqlite:///{tmp_path}/runs/mlflow.db"


HOLDER = """
import sys
from pathlib import Path
from gtvray.io import Workspace
workspace = Workspace(Path(sys.argv[1]))
with workspace.lock(*(workspace.root / name for name in sys.argv[2:])):
    print('locked', flush=True)
    sys.stdin.read()
"""


@contextmanager
def another_process(root: Path, *objects: str) -> Iterator[subprocess.Popen[str]]:
    """Another process that writes objects of a workspace; it is killed at the end."""
    command = [sys.executable, "-c", HOLDER, str(root), *objects]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "locked\n"
            yield holder
        finally:
            holder.kill()


def lock_files(root: Path) -> list[Path]:
    return [path for path in (root / ".locks").rglob("*") if path.is_file()]


def test_commands_that_write_different_objects_run_side_by_side(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    with another_process(tmp_path, "sweeps/one", "phantoms"):
        with workspace.lock(workspace.sweeps / "two", workspace.decisions), workspace.own(workspace.reports / "x"):
            assert len(lock_files(tmp_path)) == 5
        with workspace.lock():
            pass
    with workspace.lock(workspace.sweeps / "one"):
        pass
    assert lock_files(tmp_path) == [tmp_path / ".locks" / "phantoms.lock"], "left by the killed process, not held"


def test_object_has_one_writer_and_the_error_names_it(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "w")
    elsewhere = tmp_path / "report"
    with another_process(workspace.root, "sweeps/one", str(elsewhere)) as holder:
        for path in (workspace.sweeps / "one", workspace.sweeps / "two" / ".." / "one", elsewhere):
            with pytest.raises(ResourceError, match="another gtvray process") as caught:
                workspace.lock(workspace.trainings / "x", path).__enter__()
            assert f"process {holder.pid} on {socket.gethostname()}" in caught.value.fields["found"]
            assert "sweeps/one" in caught.value.fields["found"], "its command"
        with pytest.raises(ResourceError, match="another gtvray process") as caught:
            workspace.hold().__enter__()
        assert caught.value.fields["found"].count("process ") == 1, "the two locks of one process"
    with pytest.raises(ResourceError) as caught, workspace.lock():
        workspace.hold().__enter__()
    assert "found" not in caught.value.fields, "its locks were released when it was killed"
    with workspace.lock(workspace.sweeps / "one", elsewhere):
        pass
    with workspace.hold():
        pass


def test_two_processes_never_hold_one_lock(tmp_path: Path) -> None:
    """Each process increments a counter; a second holder between reading and writing would lose an increment."""
    code = (
        "import sys; from pathlib import Path\n"
        "from gtvray.io import Workspace; from gtvray.errors import ResourceError\n"
        "w, n = Workspace(Path(sys.argv[1])), 0\n"
        "while n < 150:\n"
        "    try:\n"
        "        with w.lock(w.sweeps / 'one'):\n"
        "            file = w.root / 'count'\n"
        "            file.write_text(str(int(file.read_text()) + 1)); n += 1\n"
        "    except ResourceError:\n"
        "        pass\n"
    )
    (tmp_path / "count").write_text("0")
    processes = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path)]) for _ in range(3)]
    assert [process.wait(100) for process in processes] == [0, 0, 0]
    assert (tmp_path / "count").read_text() == "450"
    assert lock_files(tmp_path) == []


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_file_system_without_locks_is_reported(tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on Lustre without its mount option, and on NFS without its lock service."""

    def flock(handle: int, kind: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    workspace = Workspace(tmp_path)
    for attempt in (lambda: workspace.lock().__enter__(), lambda: append_json_line(workspace.ledger, {})):
        with pytest.raises(ResourceError, match="does not support locks") as caught:
            attempt()
        assert "-o flock" in caught.value.fields["do"]


def test_lock_removes_temporary_files(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    (workspace.cache / ".partial-abc-entry").mkdir(parents=True)
    (tmp_path / ".partial-abc-mlflow.db").touch()
    for run in (workspace.sweeps / "one", workspace.trainings / "two"):
        (run / "checkpoints").mkdir(parents=True)
        (run / ".partial-abc-run.json").touch()
    kept = workspace.cache / "entry"
    kept.mkdir()
    with workspace.lock():
        assert sorted(workspace.cache.iterdir()) == [kept]
        assert list(tmp_path.rglob(".partial-*")) == []
        assert (workspace.sweeps / "one" / "checkpoints").is_dir()


def test_insufficient_disk_space_is_reported_before_writing(tmp_path: Path) -> None:
    with (
        pytest.raises(ResourceError, match="disk space is insufficient"),
        Workspace(tmp_path / "new").lock(need_bytes=1 << 60),
    ):
        pass


def test_temporary_files_of_a_running_command_are_kept(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    partial = workspace.bundles / ".partial-abc-model"
    own = workspace.sweeps / "two" / ".partial-abc-run.json"
    with another_process(tmp_path, "sweeps/one"):
        for folder in (partial, own):
            folder.mkdir(parents=True)
        with workspace.lock(workspace.sweeps / "two"):
            assert partial.exists()
            assert not own.exists(), "left by a killed run of the same sweep"
    with workspace.lock():
        assert not partial.exists()
