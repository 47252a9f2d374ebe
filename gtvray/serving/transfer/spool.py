"""The upload spool: bodies on disk, encrypted under keys held in memory only, with limits per client and in total.

Each gateway has a folder of its own, which it locks. The folder of a gateway that died is removed by the next one that
starts on the node.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import hashlib
import os
import re
import shutil
import stat
import tempfile
from collections import Counter
from collections.abc import Coroutine
from dataclasses import dataclass, field
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO, TypeVar

from gtvray.errors import BusyError, ClientLimitError, NotFoundError, ResourceError, StorageFullError
from gtvray.io.locks import try_lock
from gtvray.serving.request_log import new_request_id
from gtvray.serving.transfer.sealed import SealedWriter, new_key, open_sealed

_T = TypeVar("_T")
_PREFIX, _UNLOCKED_PREFIX = "gtvray-spool-", ".gtvray-spool-"
# Size of the pieces that a thread writes to disk; an upload buffers at most about one of them in memory.
PIECE_BYTES = 1 << 20
_FULL = (errno.ENOSPC, errno.EDQUOT)
_MOUNTS, _PERSISTENT, _IN_MEMORY = Path("/proc/self/mountinfo"), Path("/var/tmp"), ("tmpfs", "ramfs")  # noqa: S108


@dataclass(frozen=True)
class Body:
    """A scan's file: an encrypted one on a disk of one node, or a plain one that every node can read.

    Attributes:
        path: path of the file.
        size: size of its content in bytes.
        sha256: SHA-256 of its content.
        key: key under which it is encrypted; None for a plain file.
    """

    path: Path
    size: int
    sha256: str
    key: bytes | None = field(repr=False, default=None)

    def open(self) -> BinaryIO:
        """Open the content for reading.

        Raises:
            ResourceError: it cannot be read.
            FailureError: an encrypted file was changed; reading raises it too.
            NotFoundError: a plain file is missing on this node.
        """
        if self.key is not None:
            return open_sealed(self.path, self.key, self.size)
        try:
            return open_plain(self.path)
        except (FileNotFoundError, PermissionError) as error:
            raise NotFoundError(
                "a referenced file cannot be read on the node of the model",
                found=error.strerror,
                do="reference only files that every node of the endpoint can read",
            ) from error
        except OSError as error:
            raise ResourceError("a referenced file cannot be read", found=error.strerror) from error


class Spool:
    """The upload spool of one gateway.

    Args:
        parent: folder in which the gateway's own folder is created; None for `default_parent`.
        limit_bytes: limit of the size of all bodies together.
        client_limit_bytes: limit of the size of one client's bodies.

    Attributes:
        folder: folder of this gateway.
        used_bytes: size of all bodies.

    Raises:
        ResourceError: the folder cannot be used.
    """

    def __init__(self, parent: Path | None, limit_bytes: int, client_limit_bytes: int) -> None:
        self._limit, self._client_limit = limit_bytes, client_limit_bytes
        self.used_bytes = 0
        self._of_client: Counter[str] = Counter()
        parent = parent or default_parent()
        try:
            parent.mkdir(parents=True, exist_ok=True)
            remove_abandoned(parent)
            self.folder, self._lock = _locked_folder(parent)
        except OSError as error:
            raise ResourceError(
                "the upload spool cannot be used",
                where=parent,
                found=error.strerror,
                do="set spool_dir, or TMPDIR, to a writable folder",
            ) from error

    def close(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)
        os.close(self._lock)

    def require_space(self, client: str, count: int) -> None:
        """Check that `count` more bytes fit within the limits and on the disk.

        Raises:
            ClientLimitError: the limit of this client would be exceeded.
            BusyError: the limit of the spool would be exceeded.
            StorageFullError: the disk is full.
        """
        if self._of_client[client] + count > self._client_limit:
            raise ClientLimitError(
                "this client's uploads in progress take too much of the spool",
                expected=f"at most {self._client_limit} bytes at once",
                do="wait for the answers to earlier requests",
            )
        if self.used_bytes + count > self._limit:
            raise BusyError(
                "the upload spool is full", expected=f"at most {self._limit} bytes at once", do="retry later"
            )
        disk = os.statvfs(self.folder)
        free = disk.f_bavail * disk.f_frsize
        if count > free:
            raise _disk_full(f"{free} bytes free, {count} needed")

    def create(self, client: str) -> SpoolFile:
        """Open a new file for the body of a client."""
        return SpoolFile(self, client)

    def path(self, suffix: str) -> Path:
        """A path in the folder that is not in use."""
        return self.folder / f"{new_request_id()}{suffix}"

    def count(self, client: str, change: int) -> None:
        """Count bytes of a client that were added, or removed if negative."""
        self.used_bytes += change
        self._of_client[client] += change
        if not self._of_client[client]:
            del self._of_client[client]


class SpoolFile:
    """A body that is being received; a context manager that removes it at the end.

    Args:
        spool: the folder.
        client: client that sends the body.
    """

    def __init__(self, spool: Spool, client: str) -> None:
        self._spool, self._client = spool, client
        self._path, self._key = spool.path(".body"), new_key()
        self._digest, self._piece, self._counted = hashlib.sha256(), bytearray(), 0
        self._writer = SealedWriter(self._path, self._key)

    async def __aenter__(self) -> SpoolFile:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._writer.discard()
        await asyncio.to_thread(self._path.unlink, missing_ok=True)
        self._spool.count(self._client, -self._counted)

    async def write(self, chunk: bytes) -> None:
        """Append a chunk; a thread writes the buffered chunks to disk once they reach 1 MiB.

        Raises:
            as `Spool.require_space`.
        """
        self._spool.require_space(self._client, len(chunk))
        self._spool.count(self._client, len(chunk))
        self._counted += len(chunk)
        self._piece += chunk
        if len(self._piece) >= PIECE_BYTES:
            await self._flush()

    async def finish(self) -> Body:
        """Write the buffered content, and return the body; its file exists until the end of the `async with` block."""
        await self._flush(last=True)
        return Body(self._path, self._writer.size, self._digest.hexdigest(), self._key)

    async def _flush(self, last: bool = False) -> None:
        piece, self._piece = self._piece, bytearray()
        try:
            await completed(asyncio.to_thread(self._write, piece, last))
        except OSError as error:
            if error.errno not in _FULL:
                raise ResourceError("the upload spool cannot be written to", found=error.strerror) from error
            raise _disk_full(error.strerror) from error

    def _write(self, piece: bytearray, last: bool) -> None:
        self._digest.update(piece)
        self._writer.write(piece)
        if last:
            self._writer.close()


def default_parent(mounts: Path = _MOUNTS, persistent: Path = _PERSISTENT) -> Path:
    """Return the system's temporary folder; if that is in memory, the one on disk, unless TMPDIR selects the former.

    Args:
        mounts: list of mounted file systems, in the format of /proc/self/mountinfo.
        persistent: temporary folder on disk.
    """
    temporary = Path(tempfile.gettempdir())
    if "TMPDIR" in os.environ:
        return temporary
    try:
        mounted = os.fsdecode(mounts.read_bytes())
    except OSError:
        # Not Linux.
        return temporary
    in_memory = [_file_system(mounted, folder) in _IN_MEMORY for folder in (temporary, persistent)]
    usable = in_memory == [True, False] and persistent.is_dir() and os.access(persistent, os.W_OK | os.X_OK)
    return persistent if usable else temporary


def _file_system(mounted: str, folder: Path) -> str:
    """Type of the file system that contains a folder; see proc_pid_mountinfo(5)."""
    folder, deepest, kind = folder.resolve(), -1, ""
    for line in mounted.splitlines():
        before, _, after = line.partition(" - ")
        # The kernel writes spaces and other separators in a path as octal escapes.
        point = Path(re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), before.split()[4]))
        # The last of several mounts at one point hides the others.
        if folder.is_relative_to(point) and len(point.parts) >= deepest:
            deepest, kind = len(point.parts), after.split()[0]
    return kind


def open_plain(path: Path) -> BufferedReader:
    """Open a regular file for reading, without following a link or waiting for the other end of a pipe.

    Raises:
        OSError: there is no such file.
    """
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, "not a regular file")
    return os.fdopen(handle, "rb")


def remove_abandoned(parent: Path) -> None:
    """Remove the folders of gateways that are no longer running; their contents can no longer be decrypted."""
    for folder in parent.glob(f"{_PREFIX}*"):
        try:
            if folder.is_symlink() or folder.stat().st_uid != os.getuid():
                continue
            lock = os.open(folder / "lock", os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            if try_lock(lock, fcntl.LOCK_EX, folder):
                shutil.rmtree(folder, ignore_errors=True)
        finally:
            os.close(lock)


def _locked_folder(parent: Path) -> tuple[Path, int]:
    """Create a folder with mode 0700, locked by this process before it gets its final name; return it and its lock."""
    made = Path(tempfile.mkdtemp(prefix=_UNLOCKED_PREFIX, dir=parent))
    lock = os.open(made / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try_lock(lock, fcntl.LOCK_EX, made)
    folder = made.with_name(_PREFIX + made.name.removeprefix(_UNLOCKED_PREFIX))
    made.rename(folder)
    return folder, lock


async def completed(work: Coroutine[None, None, _T]) -> _T:
    """Await work in a thread until it has ended, even if the caller is cancelled: it needs the file to stay open."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait({task})
        raise


def _disk_full(found: object) -> StorageFullError:
    return StorageFullError(
        "the disk of the upload spool is full",
        found=found,
        do="retry later, or ask the operator to free disk space or to set spool_dir to a larger disk",
    )
