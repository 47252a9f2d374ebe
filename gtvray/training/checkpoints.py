"""A training's folder of checkpoints: written beside the training, the newest sound one found again."""

from __future__ import annotations

import logging
import re
import shutil
import tempfile
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType

from gtvray.errors import GtvrayError, InputError, ResourceError, TrainingError
from gtvray.failpoints import failpoint
from gtvray.models import Checkpoint

_KEPT_NEWEST = 2
_NAME = re.compile(r"epoch-(\d+)")
# What a killed writer leaves: see `gtvray.io.atomic_dir`.
_LEFTOVERS = (".partial-*", ".retired-*")
_log = logging.getLogger(__name__)


def checkpoint_path(folder: Path, epoch: int) -> Path:
    """Where the checkpoint of an epoch lies."""
    return folder / f"epoch-{epoch:05d}"


def newest_checkpoint(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest sound checkpoint of a folder.

    Returns:
        the checkpoint, or None if the folder has none at all; and the names of newer ones that are damaged.

    Raises:
        TrainingError: there are checkpoints, and every one is damaged.
    """
    damaged: list[str] = []
    for epoch in sorted(_epochs(folder), reverse=True):
        path = checkpoint_path(folder, epoch)
        try:
            return Checkpoint.load(path), damaged
        except TrainingError as error:
            _log.warning("checkpoint %s is skipped: %s", path, error.what)
            damaged.append(path.name)
    if damaged:
        raise TrainingError(
            "every checkpoint is damaged",
            where=folder,
            found=", ".join(damaged),
            do="put a copy of one back, or move the folder away to start anew",
        )
    return None, damaged


class CheckpointWriter:
    """Writes checkpoints in a thread, one at a time, while steps go on; the newest two and the best stay.

    Args:
        folder: where they go; it is made, and cleared of what a killed writer left.
        active: False on all workers but the first, where nothing is written.

    Raises:
        InputError: nothing can be written there.
        ResourceError: the disk is full.
    """

    def __init__(self, folder: Path, *, active: bool) -> None:
        self._folder, self._active = folder, active
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None
        if active:
            _require_writable(folder)

    def __enter__(self) -> CheckpointWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Let the last write end; its failure is raised unless the training ends with one already."""
        try:
            self.wait()
        except GtvrayError as failure:
            if kind is None or kind is GeneratorExit:
                raise
            _log.warning("%s", failure)
        finally:
            self._thread.shutdown()

    def start(self, checkpoint: Checkpoint, epoch: int, best: int) -> None:
        """Begin to write a checkpoint, whose tensors nobody changes any more.

        Args:
            checkpoint: the state.
            epoch: its own.
            best: the epoch whose checkpoint is kept beside the newest.
        """
        self.wait()
        if self._active:
            self._pending = self._thread.submit(self._write, checkpoint, epoch, best)

    def wait(self) -> None:
        """Wait until what was begun is on disk.

        Raises:
            ResourceError, InputError: it could not be written.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def _write(self, checkpoint: Checkpoint, epoch: int, best: int) -> None:
        try:
            checkpoint.save(checkpoint_path(self._folder, epoch))
        except ResourceError as error:
            kept = max(_epochs(self._folder), default=None)
            raise ResourceError(
                error.what,
                where=self._folder,
                found="no checkpoint yet" if kept is None else f"the newest checkpoint is epoch {kept}",
                do="free some space and run it again: it goes on from there",
            ) from error
        failpoint("checkpoint.written")
        _keep(self._folder, best)


def _require_writable(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"\0")
    except OSError as error:
        raise InputError(
            "cannot write checkpoints here", where=folder, found=error.strerror, do="choose another folder"
        ) from error
    for pattern in _LEFTOVERS:
        for leftover in folder.glob(pattern):
            shutil.rmtree(leftover)


def _keep(folder: Path, best: int) -> None:
    """Remove all but the newest two and the best."""
    epochs = sorted(_epochs(folder))
    for epoch in set(epochs[:-_KEPT_NEWEST]) - {best}:
        shutil.rmtree(checkpoint_path(folder, epoch))


def _epochs(folder: Path) -> list[int]:
    if not folder.is_dir():
        return []
    return [int(match[1]) for entry in folder.iterdir() if (match := _NAME.fullmatch(entry.name))]
