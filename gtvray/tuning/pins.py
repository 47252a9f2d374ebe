"""Checkpoints that trials take over from each other: pinned by hard links, so that pruning does not remove them."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

from gtvray.errors import TrainingError
from gtvray.io import atomic_dir
from gtvray.training.checkpoints import checkpoint_path

_PINS = "pinned"
# A trial that takes over a checkpoint does so before the trial it belongs to has pinned this many further ones.
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
            raise TrainingError("the checkpoint of an epoch was not written", where=source)
        time.sleep(_POLL_S)
    _link(source, checkpoint_path(pins, epoch))
    for old in sorted(pins.glob("epoch-*"))[:-_KEPT]:
        shutil.rmtree(old)


def take_over(source: Path, folder: Path, epoch: int) -> None:
    """Replace the checkpoints of a trial by the pinned one of another trial.

    Its own are of weights that it does not continue; they must be neither resumed from nor selected.

    Args:
        source: folder of the other trial.
        folder: folder of the trial.
        epoch: epoch of the pinned checkpoint.

    Raises:
        TrainingError: it is not pinned any more.
    """
    pinned = checkpoint_path(source / _PINS, epoch)
    if not pinned.is_dir():
        raise TrainingError("the checkpoint to take over is gone", where=pinned)
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
