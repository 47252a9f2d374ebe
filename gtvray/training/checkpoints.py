"""The checkpoint folder of a training: writing in a background thread, and finding the newest intact checkpoint."""

from __future__ import annotations

import logging
import re
import shutil
import tempfile
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from gtvray.errors import GtvrayError, InputError, ResourceError, TrainingError
from gtvray.failpoints import failpoint
from gtvray.models import Checkpoint
from gtvray.runtime import log_fields
from gtvray.training.fence import Attempt, begin_attempt, names_of, require_current

_KEPT_NEWEST = 2
# NFS clients look for new entries of a folder at least once a minute.
_VISIBLE_S, _VISIBLE_POLL_S = 90.0, 0.5
_NAME = re.compile(r"epoch-(\d+)")
# Left by a killed writer: see `gtvray.io.atomic_dir`.
_LEFTOVERS = (".partial-*", ".retired-*")
_log = logging.getLogger(__name__)


def checkpoint_path(folder: Path, epoch: int) -> Path:
    """The folder of an epoch's checkpoint."""
    return folder / f"epoch-{epoch:05d}"


@dataclass(frozen=True)
class Start:
    """The starting point of a training, determined once and passed to all of its workers.

    On shared storage workers may see different lists of files, and would start at different epochs.

    Attributes:
        attempt: the run of the training that starts here, the only one that may write to its folder.
        checkpoint: folder to resume from; None to start from random weights.
        has_best: whether the checkpoint of the best epoch so far is in the training's folder.
        damaged: names of newer checkpoints that were skipped.
    """

    attempt: Attempt
    checkpoint: Path | None = None
    has_best: bool = False
    damaged: tuple[str, ...] = ()

    def load(self) -> Checkpoint | None:
        """Read the checkpoint, waiting until this machine sees it.

        Raises:
            TrainingError: it is damaged, or does not appear.
        """
        if self.checkpoint is None:
            return None
        deadline = time.monotonic() + _VISIBLE_S
        while not self.checkpoint.is_dir() and time.monotonic() < deadline:
            time.sleep(_VISIBLE_POLL_S)
        return Checkpoint.load(self.checkpoint)


def decide_start(folder: Path, resume: Path | None = None) -> tuple[Start, Checkpoint | None]:
    """Decide where a training begins, and take over its folder from earlier attempts.

    Args:
        folder: of its checkpoints; created if needed.
        resume: a checkpoint to start from; by default the newest intact one in `folder`, if any.

    Returns:
        the decision, and the checkpoint.

    Raises:
        TrainingError: `resume`, or every checkpoint of the folder, is damaged.
        InputError: the folder cannot be written to.
        ResourceError: the disk is full.
    """
    _require_writable(folder)
    # First, so that an earlier attempt neither adds nor removes a checkpoint after the decision, and knows why its
    # unfinished files disappear.
    attempt = begin_attempt(folder)
    _remove_leftovers(folder)
    with log_fields(**names_of(folder, attempt)):
        found, damaged = (Checkpoint.load(resume), []) if resume is not None else newest_checkpoint(folder)
    if found is None:
        return Start(attempt), None
    path = resume if resume is not None else checkpoint_path(folder, int(found.meta["epoch"]))
    has_best = checkpoint_path(folder, int(found.meta["best_epoch"])).is_dir()
    return Start(attempt, path, has_best, tuple(damaged)), found


def newest_checkpoint(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """Find the newest checkpoint of a folder that is not damaged.

    Returns:
        the checkpoint, or None if the folder has none; and the names of newer ones that are damaged.

    Raises:
        TrainingError: every checkpoint of the folder is damaged.
    """
    damaged: list[str] = []
    for epoch in sorted(_epochs(folder), reverse=True):
        path = checkpoint_path(folder, epoch)
        try:
            return Checkpoint.load(path), damaged
        except TrainingError as error:
            _log.warning("skipping checkpoint %s: %s", path, error.what)
            damaged.append(path.name)
    if damaged:
        raise TrainingError(
            "every checkpoint is damaged",
            where=folder,
            found=", ".join(damaged),
            do="restore a copy of one, or move the folder away to start from the beginning",
        )
    return None, damaged


class CheckpointWriter:
    """Writes checkpoints in a thread, one at a time, while training continues; keeps the newest two and the best.

    Args:
        folder: for the checkpoints; created if needed, and leftovers of a killed writer are removed.
        attempt: the attempt that writes; None on all workers but the first, which write nothing.

    Raises:
        InputError: the folder cannot be written to.
        ResourceError: the disk is full.
    """

    def __init__(self, folder: Path, attempt: Attempt | None) -> None:
        self._folder = folder
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None
        self._attempt = attempt
        if attempt is not None:
            # The driver that decided the start may be on another machine.
            _require_writable(folder)
            _remove_leftovers(folder)

    def __enter__(self) -> CheckpointWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Wait for the last write; its error is raised unless the training ends with one already."""
        try:
            self.wait()
        except GtvrayError as failure:
            if kind is None or kind is GeneratorExit:
                raise
            _log.warning("%s", failure)
        finally:
            self._thread.shutdown()

    def start(self, checkpoint: Checkpoint, epoch: int, best: int) -> None:
        """Start writing a checkpoint; its tensors must not be modified afterwards.

        Args:
            checkpoint: the state.
            epoch: its epoch.
            best: the epoch whose checkpoint is kept beside the newest.
        """
        self.wait()
        if self._attempt is not None:
            self._pending = self._thread.submit(self._write, self._attempt, checkpoint, epoch, best)

    def wait(self) -> None:
        """Wait until the checkpoint is on disk.

        Raises:
            ResourceError, InputError: it could not be written.
            TrainingError: a later attempt has taken over the folder.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def _write(self, attempt: Attempt, checkpoint: Checkpoint, epoch: int, best: int) -> None:
        def confirm() -> None:
            require_current(self._folder, attempt)

        confirm()
        try:
            checkpoint.save(checkpoint_path(self._folder, epoch), confirm)
        except Exception as error:
            # A later attempt removes the unfinished files of this one.
            confirm()
            if not isinstance(error, ResourceError):
                raise
            kept = max(_epochs(self._folder), default=None)
            raise ResourceError(
                error.what,
                where=self._folder,
                found="no checkpoint yet" if kept is None else f"the newest checkpoint is epoch {kept}",
                do="free some space and run it again: it resumes from that checkpoint",
            ) from error
        failpoint("checkpoint.written")
        confirm()
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


def _remove_leftovers(folder: Path) -> None:
    for pattern in _LEFTOVERS:
        for leftover in folder.glob(pattern):
            # The writer of an earlier attempt may still add files; it then removes them itself.
            shutil.rmtree(leftover, ignore_errors=True)


def _keep(folder: Path, best: int) -> None:
    """Remove all but the newest two and the best."""
    epochs = sorted(_epochs(folder))
    for epoch in set(epochs[:-_KEPT_NEWEST]) - {best}:
        shutil.rmtree(checkpoint_path(folder, epoch))


def _epochs(folder: Path) -> list[int]:
    if not folder.is_dir():
        return []
    return [int(match[1]) for entry in folder.iterdir() if (match := _NAME.fullmatch(entry.name))]
