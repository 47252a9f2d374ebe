"""Encrypted files: AES-256-GCM over frames of fixed size.

Each file has its own random key, so that a frame's number serves as its nonce (NIST SP 800-38D, section 8.2.1). A frame
that was modified, moved or copied from another file fails to decrypt; readers know the size of the content, so they
detect truncation. The upload spool keeps keys in memory only; the job store keeps them encrypted
(`gtvray.serving.jobs.sealing`).
"""

from __future__ import annotations

import io
import os
import secrets
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from gtvray.errors import FailureError, ResourceError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

Bytes = bytes | bytearray | memoryview

FRAME_BYTES = 1 << 18
_TAG_BYTES = 16


def new_key() -> bytes:
    """A random key for one file."""
    return secrets.token_bytes(32)


class SealedWriter:
    """Write an encrypted file, readable by its owner only.

    Args:
        path: path of the file, which must not exist.
        key: key of this file, never used for another one.

    Attributes:
        size: bytes of content written so far.
    """

    def __init__(self, path: Path, key: bytes) -> None:
        self._cipher, self._rest, self._frame, self.size = AESGCM(key), bytearray(), 0, 0
        self._file = os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb", 0)

    def write(self, content: Bytes) -> None:
        """Append bytes.

        Raises:
            OSError: the disk is full.
        """
        self._rest += content
        self.size += len(memoryview(content))
        whole = len(self._rest) // FRAME_BYTES * FRAME_BYTES
        for start in range(0, whole, FRAME_BYTES):
            self._write_frame(self._rest[start : start + FRAME_BYTES])
        del self._rest[:whole]

    def close(self, *, durable: bool = False) -> None:
        """Write the remaining content, and close the file.

        Args:
            durable: whether the content must survive a power failure from now on.

        Raises:
            OSError: the disk is full.
        """
        with self._file:
            if self._rest:
                self._write_frame(self._rest)
                self._rest.clear()
            if durable:
                os.fsync(self._file.fileno())

    def discard(self) -> None:
        """Close the file without writing the remaining content."""
        self._file.close()

    def _write_frame(self, content: bytearray) -> None:
        sealed = memoryview(self._cipher.encrypt(_nonce(self._frame), bytes(content), None))
        self._frame += 1
        while sealed:
            sealed = sealed[self._file.write(sealed) :]


class SealedReader(io.RawIOBase):
    """Read an encrypted file; seekable.

    Args:
        path: path of the file.
        key: key with which it was written.
        size: size of its content in bytes.

    Raises:
        ResourceError: the file cannot be read.
        FailureError: the file was truncated or extended. Reading a modified file raises it, too.
    """

    def __init__(self, path: Path, key: bytes, size: int) -> None:
        self._path, self._cipher, self._size = path, AESGCM(key), size
        self._at, self._frame, self._content = 0, -1, b""
        try:
            self._file = path.open("rb", buffering=0)
        except OSError as error:
            raise ResourceError("a stored file cannot be read", found=error.strerror) from error
        if os.fstat(self._file.fileno()).st_size != size + -(-size // FRAME_BYTES) * _TAG_BYTES:
            self._file.close()
            raise _changed()

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """As `io.IOBase.seek`."""
        self._at = max(0, offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence])
        return self._at

    def tell(self) -> int:
        """As `io.IOBase.tell`."""
        return self._at

    def readinto(self, buffer: WriteableBuffer) -> int:
        """As `io.RawIOBase.readinto`, at most to the end of a frame."""
        if self._at >= self._size:
            return 0
        frame, start = divmod(self._at, FRAME_BYTES)
        content = self._load(frame)[start:]
        view = memoryview(buffer).cast("B")
        count = min(len(view), len(content))
        view[:count] = content[:count]
        self._at += count
        return count

    def close(self) -> None:
        """Close the file and discard the decrypted content."""
        self._content = b""
        self._file.close()
        super().close()

    def _load(self, frame: int) -> bytes:
        if frame != self._frame:
            self._file.seek(frame * (FRAME_BYTES + _TAG_BYTES))
            try:
                self._content = self._cipher.decrypt(_nonce(frame), self._file.read(FRAME_BYTES + _TAG_BYTES), None)
            except InvalidTag:
                raise _changed() from None
            self._frame = frame
        return self._content


def open_sealed(path: Path, key: bytes, size: int) -> BinaryIO:
    """Open an encrypted file for buffered reading; as `SealedReader`."""
    # A buffered reader has every method of a binary file.
    return io.BufferedReader(SealedReader(path, key, size), FRAME_BYTES)


def _changed() -> FailureError:
    return FailureError("a stored file was modified or truncated", do="send the scan again")


def _nonce(frame: int) -> bytes:
    return frame.to_bytes(12)
