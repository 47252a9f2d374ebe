"""Checkpoints that trials take over from each other."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from gtvray.errors import TrainingError
from gtvray.tuning import pins
from gtvray.tuning.pins import pin_checkpoint, take_over


def put(folder: Path, epoch: int, text: str) -> Path:
    path = folder / f"epoch-{epoch:05d}"
    path.mkdir(parents=True)
    (path / "state").write_text(text)
    return path


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("epoch-*"))


def test_a_pinned_checkpoint_outlives_its_pruning_and_replaces_those_of_the_other_trial(tmp_path: Path) -> None:
    better, worse = tmp_path / "t0", tmp_path / "t1"
    source = put(better, 3, "good")
    put(worse, 2, "bad")
    put(worse, 4, "bad")
    pin_checkpoint(better, 3)
    pinned = better / "pinned" / "epoch-00003" / "state"
    assert os.stat(pinned).st_ino == os.stat(source / "state").st_ino, "no second copy on the disk"
    (source / "state").unlink()
    source.rmdir()
    take_over(better, worse, 3)
    assert names(worse) == ["epoch-00003"]
    assert (worse / "epoch-00003" / "state").read_text() == "good"
    take_over(better, worse, 3)
    assert names(worse) == ["epoch-00003"], "a repetition changes nothing"


def test_the_newest_pins_are_kept(tmp_path: Path) -> None:
    for epoch in range(1, 6):
        put(tmp_path, epoch, "")
        pin_checkpoint(tmp_path, epoch)
    assert names(tmp_path / "pinned") == [f"epoch-{epoch:05d}" for epoch in (3, 4, 5)]
    with pytest.raises(TrainingError, match="no longer exists"):
        take_over(tmp_path, tmp_path / "other", 1)


def test_a_checkpoint_that_is_being_written_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    timer = threading.Timer(0.2, put, (tmp_path, 1, "late"))
    timer.start()
    pin_checkpoint(tmp_path, 1)
    timer.join()
    assert names(tmp_path / "pinned") == ["epoch-00001"]
    monkeypatch.setattr(pins, "_WAIT_S", 0.1)
    with pytest.raises(TrainingError, match="was not written"):
        pin_checkpoint(tmp_path, 2)


def test_without_hard_links_the_files_are_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError("not supported")

    monkeypatch.setattr(os, "link", refuse)
    put(tmp_path, 1, "text")
    pin_checkpoint(tmp_path, 1)
    assert (tmp_path / "pinned" / "epoch-00001" / "state").read_text() == "text"
