"""Writing so that a reader, or a second run after kill -9, sees the whole or nothing."""

from __future__ import annotations

import errno
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
# What file systems without hard links answer, such as FAT and some network shares.
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK, errno.EXDEV)


@contextmanager
def atomic_path(path: str | os.PathLike[str], *, may_replace: Callable[[], bool] | None = None) -> Iterator[Path]:
    """Give a temporary name beside `path`; on success it is flushed and renamed to `path`, otherwise removed.

    Args:
        path: the final name.
        may_replace: asked, if there is something of that name at the end, whether it may be replaced; without it
            anything is.

    Raises:
        ResourceError: the disk is full.
        InputError: the folder cannot be written to, or what is there may not be replaced.
    """
    final = Path(path)
    with _disk_errors(final):
        final.parent.mkdir(parents=True, exist_ok=True)
        # The suffixes are kept at the end: writers choose their format by them.
        suffix = "-" + final.name[-_KEPT_CHARACTERS:]
        handle, name = tempfile.mkstemp(prefix=".partial-", suffix=suffix, dir=final.parent)
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
def atomic_dir(path: str | os.PathLike[str], *, complete_with: str | None = None) -> Iterator[Path]:
    """The same for a folder, which takes the place of an older one of that name.

    Args:
        path: the folder.
        complete_with: an older folder that holds this file stays, and the new one is dropped. For folders found by
            content, which others may be reading.

    Raises:
        ResourceError: the disk is full.
        InputError: the place cannot be written to.
    """
    final = Path(path)
    with _disk_errors(final):
        final.parent.mkdir(parents=True, exist_ok=True)
        suffix = "-" + final.name[-_KEPT_CHARACTERS:]
        temporary = Path(tempfile.mkdtemp(prefix=".partial-", suffix=suffix, dir=final.parent))
        try:
            yield temporary
            for file in temporary.rglob("*"):
                if file.is_file():
                    _flush(file)
                    if not file.is_symlink():
                        # As `atomic_path` does: safetensors' own files can be read by their owner only.
                        file.chmod(0o644)
            temporary.chmod(0o755)
            while not _renamed(temporary, final):
                # Something is there, if only since a moment ago: another process may write the same folder.
                if complete_with and (final / complete_with).exists():
                    break
                retired = Path(tempfile.mkdtemp(prefix=".retired-", dir=final.parent))
                with suppress(FileNotFoundError):
                    final.replace(retired / final.name)
                shutil.rmtree(retired)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def sha256_of(path: Path) -> str:
    """The sha256 of a file's bytes, as hexadecimal text."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _publish(temporary: Path, final: Path, may_replace: Callable[[], bool] | None) -> None:
    if may_replace is not None:
        if _linked(temporary, final):
            return
        if os.path.lexists(final) and not may_replace():
            raise InputError(
                "an output is there already",
                where=final,
                found="a file that was there before, or has appeared since the work began",
                do="move it away, or choose another name",
            )
    temporary.replace(final)


def _linked(temporary: Path, final: Path) -> bool:
    """Give a file its final name in one step that fails if the name is taken, where the file system can."""
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
            raise ResourceError("the disk is full", where=path.parent, do="free some space and run it again") from error
        if error.errno == errno.ENAMETOOLONG:
            raise InputError("the name is too long", where=path, do="choose a shorter name") from error
        if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM, errno.ENOTDIR, errno.EEXIST):
            raise InputError(
                "cannot write here", where=path.parent, found=error.strerror, do="choose a folder you may write to"
            ) from error
        raise
