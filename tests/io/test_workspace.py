"""The workspace's places, its lock, and what a killed writer leaves."""

from __future__ import annotations

from pathlib import Path

import pytest

from gtvray.errors import ResourceError
from gtvray.io import Workspace


def test_a_relative_workspace_means_the_same_place_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    place = Workspace(Path("runs"))
    monkeypatch.chdir("/")
    assert place.cache == tmp_path / "runs" / "cache"
    assert place.mlflow_uri == f"sqlite:///{tmp_path}/runs/mlflow.db"


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    with Workspace(tmp_path).lock(), pytest.raises(ResourceError, match="another gtvray process"):
        Workspace(tmp_path).lock().__enter__()
    with Workspace(tmp_path).lock():
        pass


def test_leftovers_go_when_the_lock_is_taken(tmp_path: Path) -> None:
    place = Workspace(tmp_path)
    (place.cache / ".partial-abc-entry").mkdir(parents=True)
    (tmp_path / ".partial-abc-mlflow.db").touch()
    for run in (place.sweeps / "one", place.trainings / "two"):
        (run / "checkpoints").mkdir(parents=True)
        (run / ".partial-abc-run.json").touch()
    kept = place.cache / "entry"
    kept.mkdir()
    with place.lock():
        assert sorted(place.cache.iterdir()) == [kept]
        assert list(tmp_path.rglob(".partial-*")) == []
        assert (place.sweeps / "one" / "checkpoints").is_dir()


def test_too_little_disk_is_told_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match="too little disk space"), Workspace(tmp_path / "new").lock(1 << 60):
        pass
