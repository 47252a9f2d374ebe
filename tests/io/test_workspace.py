"""Paths of a workspace, its lock, and cleanup after a killed writer."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from gtvray.errors import ResourceError
from gtvray.io import Workspace


def test_relative_root_is_resolved_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    workspace = Workspace(Path("runs"))
    monkeypatch.chdir("/")
    assert workspace.cache == tmp_path / "runs" / "cache"
    assert workspace.mlflow_uri == f"sqlite:///{tmp_path}/runs/mlflow.db"


def test_lock_is_exclusive(tmp_path: Path) -> None:
    with Workspace(tmp_path).lock(), pytest.raises(ResourceError, match="another gtvray process"):
        Workspace(tmp_path).lock().__enter__()
    with Workspace(tmp_path).lock():
        pass


def test_lock_of_a_killed_process_is_released(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from gtvray.io import Workspace\n"
        "with Workspace(Path(sys.argv[1])).lock():\n    print('locked', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        try:
            assert holder.stdout.readline() == "locked\n"
            with pytest.raises(ResourceError, match="another gtvray process"):
                Workspace(tmp_path).lock().__enter__()
        finally:
            holder.kill()
    with Workspace(tmp_path).lock():
        pass


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
    with pytest.raises(ResourceError, match="disk space is insufficient"), Workspace(tmp_path / "new").lock(1 << 60):
        pass
