"""Locks between processes on files (`flock`), which the system releases however a process ends."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shlex
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from gtvray.errors import InputError, ResourceError

_UNSUPPORTED = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL)
_POLL_S = 0.05
# `owner_of` of another process holds a lock for a moment.
_TAKEN_AFTER_S = 0.5


def flock(handle: int, kind: int, path: Path) -> None:
    """Lock an open file as `fcntl.flock` does.

    Args:
        handle: of the open file.
        kind: `fcntl.LOCK_SH` or `LOCK_EX`, with `LOCK_NB` or without.
        path: the file, for the error.

    Raises:
        BlockingIOError: with `LOCK_NB`, another process holds the lock.
        ResourceError: the file system has no locks.
    """
    try:
        fcntl.flock(handle, kind)
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
        raise ResourceError(
            "the file system does not support locks (flock)",
            where=path,
            found=error.strerror,
            do="mount it with locks (Lustre: -o flock; NFS: with its lock service), or choose a --workspace on another "
            "file system, such as a local disk; data and bundles may stay where they are",
        ) from error


@contextmanager
def exclusive_lock(path: Path, what: Path) -> Iterator[None]:
    """Lock a file within a `with` block; it names this process, and is removed at the end.

    Args:
        path: the file of the lock; created with its folder.
        what: what the lock protects, for the error.

    Raises:
        ResourceError: another process holds the lock, or the file system has no locks.
        InputError: the file cannot be written to.
    """
    handle = _acquire(path, what)
    try:
        owner = {"pid": os.getpid(), "host": socket.gethostname(), "command": _command(), "since": _now()}
        os.ftruncate(handle, 0)
        os.pwrite(handle, json.dumps(owner).encode(), 0)
        yield
    finally:
        if _is_at(handle, path):
            path.unlink(missing_ok=True)
        os.close(handle)


def owner_of(path: Path) -> str | None:
    """Describe the process that holds a lock of `exclusive_lock`; None if there is none."""
    try:
        handle = os.open(path, os.O_RDWR)
    except OSError:
        return None
    try:
        if try_lock(handle, fcntl.LOCK_SH, path):
            return None
        owner = json.loads(path.read_bytes())
        return f"process {owner['pid']} on {owner['host']} since {owner['since']}: {owner['command']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "a process that has not recorded its name"
    finally:
        os.close(handle)


@contextmanager
def open_lock(path: Path) -> Iterator[int]:
    """Open the file of a lock within a `with` block; the lock ends with the block.

    Raises:
        InputError: the file cannot be written to.
    """
    handle = _open(path)
    try:
        yield handle
    finally:
        os.close(handle)


def try_lock(handle: int, kind: int, path: Path, within_s: float = 0.0) -> bool:
    """Lock an open file; return False if other processes hold it for longer than `within_s`."""
    deadline = time.monotonic() + within_s
    while True:
        try:
            flock(handle, kind | fcntl.LOCK_NB, path)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
            time.sleep(_POLL_S)
        else:
            return True


def _acquire(path: Path, what: Path) -> int:
    while True:
        handle = _open(path)
        try:
            if not try_lock(handle, fcntl.LOCK_EX, path, _TAKEN_AFTER_S):
                raise ResourceError(
                    "another gtvray process is writing this",
                    where=what,
                    found=owner_of(path),
                    do="wait for it to end, or choose another name or --workspace",
                )
            # The process that held it has removed the file in the meantime.
            if _is_at(handle, path):
                return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)


def _open(path: Path) -> int:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise InputError(
            "workspace is not writable",
            where=path.parent,
            found=error.strerror,
            do="choose a writable folder with --workspace or GTVRAY_WORKSPACE",
        ) from error


def _is_at(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except FileNotFoundError:
        return False


def _command() -> str:
    program, *arguments = sys.argv or ["python"]
    return shlex.join([os.path.basename(program), *arguments])


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
