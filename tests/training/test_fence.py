"""Fencing of checkpoints: of two processes only the later one writes; and the checkpoint from which training starts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from gtvray.errors import TrainingError
from gtvray.models import Checkpoint
from gtvray.training.checkpoints import CheckpointWriter, Start, checkpoint_path, decide_start


def checkpoint(epoch: int, best: int = 1) -> Checkpoint:
    return Checkpoint({"network:w": torch.zeros(2)}, {"epoch": epoch, "best_epoch": best})


def test_a_replaced_writer_writes_and_removes_nothing(tmp_path: Path) -> None:
    """The first process runs on a machine that was disconnected and reconnects."""
    with CheckpointWriter(tmp_path, active=True) as replaced:
        replaced.start(checkpoint(1), 1, 1)
        replaced.wait()
        with CheckpointWriter(tmp_path, active=True) as later:
            for epoch in (2, 3):
                later.start(checkpoint(epoch), epoch, 1)
        replaced.start(checkpoint(9), 9, 9)
        with pytest.raises(TrainingError, match="another process continues this training"):
            replaced.wait()
    assert sorted(path.name for path in tmp_path.glob("epoch-*")) == ["epoch-00001", "epoch-00002", "epoch-00003"]


def test_other_ranks_do_not_own_the_folder(tmp_path: Path) -> None:
    with CheckpointWriter(tmp_path, active=True) as writer, CheckpointWriter(tmp_path, active=False):
        writer.start(checkpoint(1), 1, 1)
    assert checkpoint_path(tmp_path, 1).is_dir()


def test_start_is_decided_with_its_best_epoch_and_what_was_damaged(tmp_path: Path) -> None:
    assert decide_start(tmp_path) == (Start(None), None)
    for epoch in (1, 2, 3):
        checkpoint(epoch).save(checkpoint_path(tmp_path, epoch))
    (checkpoint_path(tmp_path, 3) / "state.safetensors").write_bytes(b"x")
    start, found = decide_start(tmp_path)
    assert start == Start(checkpoint_path(tmp_path, 2), True, ("epoch-00003",))
    assert found is not None
    # Another worker loads the chosen checkpoint, although it sees a newer one.
    checkpoint(4).save(checkpoint_path(tmp_path, 4))
    loaded = start.load()
    assert loaded is not None
    assert loaded.meta["epoch"] == 2
    # The best epoch of that training is not in another folder.
    assert not decide_start(tmp_path / "other", checkpoint_path(tmp_path, 2))[0].has_best
