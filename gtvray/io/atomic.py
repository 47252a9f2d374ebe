"""Atomic writes: readers, and a second run after kill -9, see the complete file or folder or none."""

from __future__ import annotations

import errno
import glob
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from gtvray.errors import InputError, ResourceError

# A temporary name adds 18 bytes to the end of the final one; both must stay below the 255 of common file systems.
_KEPT_CHARACTERS = 56
_PREFIX = ".partial-"
# Errors of file systems without hard links, such as FAT and some network shares.
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK, errno.EXDEV)


@contextmanager
def atomic_path(path: str | os.PathLike[str], *, may_replace: Callable[[], bool] | None = None) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success flush it and rename it to `path`, otherwise remove it.

    Args:
        path: the final path.
        may_replace: called if `path` exists after writing; whether it may be replaced. None: always.

    Raises:
        ResourceError: the disk is full.
        InputError: the folder is not writable, or `path` exists and may not be replaced.
    """
    final = Path(path)
    with _disk_errors(final):
        final.parent.mkdir(parents=True, exist_ok=True)
        # Writers choose the format by the suffix, so the temporary name keeps it.
        handle, name = tempfile.mkstemp(prefix=_PREFIX, suffix=_suffix(final), dir=final.parent)
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            _flush(temporary)
            temporary.chmod(0o644)
            _publish(temporary, final, may_replace)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def atomic_dir(
    path: str | os.PathLike[str],
    *,
    complete_with: str | None = None,
    confirm: Callable[[], None] = lambda: None,
) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; on success flush it and replace `path` by it, otherwise remove it.

    Args:
        path: the folder.
        complete_with: name of a file that marks a complete folder. If `path` has it, `path` is kept and the new
            folder is discarded: content-addressed folders are equal, and another process may be reading the old one.
        confirm: called when the new folder is on disk, before it appears; raises to have it removed instead.

    Raises:
        ResourceError: the disk is full.
        InputError: the folder is not writable.
    """
    final = Path(path)
    with _disk_errors(final):
        final.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=_PREFIX, suffix=_suffix(final), dir=final.parent))
        try:
            yield temporary
            for file in temporary.rglob("*"):
                if file.is_file():
                    _flush(file)
                    if not file.is_symlink():
                        # As `atomic_path` does: safetensors' own files can be read by their owner only.
                        file.chmod(0o644)
            temporary.chmod(0o755)
            confirm()
            while not _renamed(temporary, final):
                # The folder exists, possibly created by a concurrent writer a moment ago.
                if complete_with and (final / complete_with).exists():
                    break
                retired = Path(tempfile.mkdtemp(prefix=".retired-", dir=final.parent))
                with suppress(FileNotFoundError):
                    final.replace(retired / final.name)
                shutil.rmtree(retired)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def remove_partial(path: Path) -> None:
    """Remove the temporary files that killed writers of a file have left beside it; no other may be writing it.

    Those of long names stay, since another file may share the part of the name that is kept.
    """
    if len(path.name) > _KEPT_CHARACTERS:
        return
    for leftover in path.parent.glob(f"{_PREFIX}????????{glob.escape(_suffix(path))}"):
        leftover.unlink(missing_ok=True)


def sha256_of(path: Path) -> str:
    """The sha256 of a file's bytes, as hexadecimal text."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _suffix(final: Path) -> str:
    return "-" + final.name[-_KEPT_CHARACTERS:]


def _publish(temporary: Path, final: Path, may_replace: Callable[[], bool] | None) -> None:
    if may_replace is not None:
        if _linked(temporary, final):
            return
        if os.path.lexists(final) and not may_replace():
            raise InputError(
                "output already exists",
                where=final,
                found="a file from before this command, or created while it ran",
                do="move it away, or choose another name",
            )
    temporary.replace(final)


def _linked(temporary: Path, final: Path) -> bool:
    """Hard-link a file to its final name, which fails if the name is taken; False if taken or not supported."""
    try:
        os.link(temporary, final)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        return False
    return True


def _renamed(temporary: Path, final: Path) -> bool:
    try:
        temporary.replace(final)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise
        return False
    return True


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ResourceError(
                "the disk is full", where=path.parent, do="free some disk space and run it again"
            ) from error
        if error.errno == errno.ENAMETOOLONG:
            raise InputError("file name is too long", where=path, do="choose a shorter name") from error
        if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM, errno.ENOTDIR, errno.EEXIST):
            raise InputError(
                "folder is not writable", where=path.parent, found=error.strerror, do="choose a writable folder"
            ) from error
        raise
