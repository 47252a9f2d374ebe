"""Pinned checkpoints: hard links that keep a checkpoint for another trial after its own trial has pruned it."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

from gtvray.errors import TrainingError
from gtvray.io import atomic_dir
from gtvray.training.checkpoints import checkpoint_path
from gtvray.training.fence import begin_attempt

_PINS = "pinned"
# Number of pinned checkpoints kept per trial; one is copied before its trial has pinned this many newer ones.
_KEPT = 3
_WAIT_S = 120.0
_POLL_S = 0.05


def pin_checkpoint(folder: Path, epoch: int) -> None:
    """Pin the checkpoint of an epoch, which a thread may still be writing.

    Args:
        folder: folder of the trial.
        epoch: epoch that the trial has reported.

    Raises:
        TrainingError: the checkpoint does not appear.
    """
    source, pins = checkpoint_path(folder, epoch), folder / _PINS
    deadline = time.monotonic() + _WAIT_S
    while not source.is_dir():
        if time.monotonic() > deadline:
            raise TrainingError(
                "the checkpoint of an epoch was not written",
                where=source,
                do="check the disk and the log of the trial, then resume the sweep",
            )
        time.sleep(_POLL_S)
    _link(source, checkpoint_path(pins, epoch))
    for old in sorted(pins.glob("epoch-*"))[:-_KEPT]:
        shutil.rmtree(old)


def take_over(source: Path, folder: Path, epoch: int) -> None:
    """Replace the checkpoints of a trial by a pinned checkpoint of another trial.

    The trial does not continue from its own weights, so its own checkpoints must be neither resumed nor selected.

    Args:
        source: folder of the other trial.
        folder: folder of the trial.
        epoch: epoch of the pinned checkpoint.

    Raises:
        TrainingError: the checkpoint is no longer pinned.
    """
    pinned = checkpoint_path(source / _PINS, epoch)
    if not pinned.is_dir():
        raise TrainingError(
            "the pinned checkpoint of another trial no longer exists",
            where=pinned,
            do="restore the folder of the sweep from a backup, or start a new sweep",
        )
    # An earlier attempt, which may still run, must not add a checkpoint of its own weights.
    begin_attempt(folder)
    for own in folder.glob("epoch-*"):
        shutil.rmtree(own)
    _link(pinned, checkpoint_path(folder, epoch))


def _link(source: Path, target: Path) -> None:
    if target.is_dir():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    with atomic_dir(target) as temporary:
        shutil.copytree(source, temporary, copy_function=_link_file, dirs_exist_ok=True)


def _link_file(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        # Not every file system has hard links.
        shutil.copy2(source, target)
