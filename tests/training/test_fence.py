"""Fencing of checkpoints: of two attempts only the later one writes; and the checkpoint from which training starts."""

from __future__ import annotations

import logging
import threading
from pathlib import Path

import pytest
import torch

from gtvray.config import Config
from gtvray.data import CachedCase
from gtvray.errors import TrainingError
from gtvray.models import Checkpoint
from gtvray.training import checkpoints, fit
from gtvray.training.checkpoints import CheckpointWriter, Start, checkpoint_path, decide_start
from gtvray.training.fence import Attempt, begin_attempt
from gtvray.tuning.pins import take_over


def checkpoint(epoch: int, best: int = 1) -> Checkpoint:
    return Checkpoint({"network:w": torch.zeros(2)}, {"epoch": epoch, "best_epoch": best})


def epochs(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("epoch-*"))


def test_a_replaced_writer_writes_and_removes_nothing(tmp_path: Path) -> None:
    """The first process runs on a machine that was disconnected and reconnects."""
    first = begin_attempt(tmp_path)
    with CheckpointWriter(tmp_path, first) as replaced:
        replaced.start(checkpoint(1), 1, 1)
        replaced.wait()
        second = begin_attempt(tmp_path)
        with CheckpointWriter(tmp_path, second) as later:
            for epoch in (2, 3):
                later.start(checkpoint(epoch), epoch, 1)
        replaced.start(checkpoint(9), 9, 9)
        with pytest.raises(TrainingError, match="another process continues this training"):
            replaced.wait()
    assert epochs(tmp_path) == ["epoch-00001", "epoch-00002", "epoch-00003"]
    assert (first.number, second.number) == (1, 2)


def test_a_checkpoint_that_was_being_written_at_the_takeover_does_not_appear(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The start of the new attempt is decided while the files of the old one are written, or just before."""
    first = decide_start(tmp_path)[0].attempt
    decided: list[Start] = []

    def take(name: str, rank: int = 0) -> bool:
        if name == "checkpoint.write" and not decided:
            decided.append(decide_start(tmp_path)[0])
        return False

    monkeypatch.setattr("gtvray.models.checkpoint.failpoint", take)
    with CheckpointWriter(tmp_path, first) as writer:
        writer.start(checkpoint(1), 1, 1)
        with pytest.raises(TrainingError, match="another process continues"):
            writer.wait()
    assert [(start.attempt.number, start.checkpoint) for start in decided] == [(2, None)]
    assert epochs(tmp_path) == []
    assert list(tmp_path.glob(".partial-*")) == []


def test_weights_of_another_trial_are_not_mixed_with_those_of_an_earlier_attempt(tmp_path: Path) -> None:
    checkpoint(2).save(checkpoint_path(tmp_path / "source" / "pinned", 2))
    own = decide_start(tmp_path / "trial")[0].attempt
    with CheckpointWriter(tmp_path / "trial", own) as writer:
        take_over(tmp_path / "source", tmp_path / "trial", 2)
        writer.start(checkpoint(3), 3, 3)
        with pytest.raises(TrainingError, match="another process continues"):
            writer.wait()
    assert epochs(tmp_path / "trial") == ["epoch-00002"]


def test_unfinished_files_of_an_earlier_attempt_are_removed_once_it_can_know_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unfinished = tmp_path / ".partial-abcdefgh-epoch-00001"
    unfinished.mkdir()
    begin = checkpoints.begin_attempt

    def begin_before_removal(folder: Path) -> Attempt:
        assert unfinished.exists()
        return begin(folder)

    monkeypatch.setattr(checkpoints, "begin_attempt", begin_before_removal)
    decide_start(tmp_path)
    assert not unfinished.exists()


def test_an_attempt_ends_when_a_later_one_has_started(
    config: Config, train: list[CachedCase], selection: list[CachedCase], tmp_path: Path
) -> None:
    running = fit(config, train, selection, tmp_path)
    assert next(running).epoch == 1
    later = list(fit(config, train, selection, tmp_path))
    assert [report.epoch for report in later][-1] == config.training.epochs
    before = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*")}
    with pytest.raises(TrainingError, match="another process continues"):
        list(running)
    assert {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*")} == before


def test_log_lines_name_training_trial_and_attempt(
    config: Config,
    train: list[CachedCase],
    selection: list[CachedCase],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In the decision of the start, in the training itself and in its threads; names may contain any character."""
    folder = tmp_path / "sweeps" / "50 %s" / "trials" / "t3"
    first, *_ = [report.epoch for report in fit(config, train, selection, folder)]
    assert (first, caplog.messages) == (1, [])
    damaged = sorted(folder.glob("epoch-*"))[-1] / "state.safetensors"
    damaged.write_bytes(b"x")

    def log_in_thread(folder: Path, attempt: object) -> None:
        logging.getLogger("gtvray.training").warning("written by %s", threading.current_thread().name)
        logging.getLogger("another").warning("a line of a library")

    monkeypatch.setattr("gtvray.training.checkpoints.require_current", log_in_thread)
    list(fit(config, train, selection, folder))
    skipped, *written = [message for message in caplog.messages if "library" not in message]
    assert skipped.startswith(f"run=50 %s trial=t3 attempt=2 skipping checkpoint {damaged.parent}")
    assert {message.partition("written by")[0] for message in written} == {"run=50 %s trial=t3 attempt=2 rank=0 "}
    assert "a line of a library" in caplog.messages
    caplog.clear()
    logging.getLogger("gtvray").warning("after the end")
    assert caplog.messages == ["after the end"]


def test_other_ranks_do_not_own_the_folder(tmp_path: Path) -> None:
    attempt = begin_attempt(tmp_path)
    with CheckpointWriter(tmp_path, attempt) as writer, CheckpointWriter(tmp_path, None):
        writer.start(checkpoint(1), 1, 1)
    assert checkpoint_path(tmp_path, 1).is_dir()


def test_start_is_decided_with_its_best_epoch_and_what_was_damaged(tmp_path: Path) -> None:
    start, found = decide_start(tmp_path)
    assert (start.checkpoint, found) == (None, None)
    for epoch in (1, 2, 3):
        checkpoint(epoch).save(checkpoint_path(tmp_path, epoch))
    (checkpoint_path(tmp_path, 3) / "state.safetensors").write_bytes(b"x")
    start, found = decide_start(tmp_path)
    assert start == Start(start.attempt, checkpoint_path(tmp_path, 2), True, ("epoch-00003",))
    assert found is not None
    # Another worker loads the chosen checkpoint, although it sees a newer one.
    checkpoint(4).save(checkpoint_path(tmp_path, 4))
    loaded = start.load()
    assert loaded is not None
    assert loaded.meta["epoch"] == 2
    # The best epoch of that training is not in another folder.
    assert not decide_start(tmp_path / "other", checkpoint_path(tmp_path, 2))[0].has_best
