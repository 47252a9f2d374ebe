"""Encrypted files: AES-256-GCM in chunks, so that a scan is encrypted as it arrives and no change goes unnoticed.

The construction is STREAM (https://eprint.iacr.org/2015/189, section 4) with a key of its own for each file, as in
Tink's AES-GCM-HKDF: the nonce of a chunk is its number and whether it is the last, so chunks can be neither reordered
nor cut off. The file's purpose is part of its key, so one file cannot take the place of another.

Format: 8 bytes magic, 32 bytes salt, chunks of 1 MiB with 16 bytes of tag each.
"""

from __future__ import annotations

import base64
import binascii
import io
import os
from pathlib import Path
from typing import IO

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from gtvray.errors import ConfigError, FailureError

KEY_VARIABLE = "GTVRAY_JOBS_KEY"
_KEY_BYTES, _SALT_BYTES, _TAG_BYTES = 32, 32, 16
_MAGIC = b"GTVRAYJ1"
CHUNK_BYTES = 1 << 20


class SealedWriter:
    """Encrypts what is written to a file; `finish` must be called.

    Args:
        file: an empty file, open for writing.
        key: the key of the job store, 32 bytes.
        purpose: what the file is, for example `job/input/0`; needed to read it.
    """

    def __init__(self, file: IO[bytes], key: bytes, purpose: str) -> None:
        salt = os.urandom(_SALT_BYTES)
        self._file, self._cipher = file, _cipher(key, salt, purpose)
        self._pending = bytearray()
        self._number = 0
        file.write(_MAGIC + salt)

    def write(self, content: bytes) -> None:
        """Encrypt and write further bytes."""
        self._pending += content
        # The last chunk is written by `finish`, so one is kept back.
        while len(self._pending) > CHUNK_BYTES:
            self._seal(bytes(self._pending[:CHUNK_BYTES]), last=False)
            del self._pending[:CHUNK_BYTES]

    def finish(self) -> None:
        """Write the last chunk."""
        self._seal(bytes(self._pending), last=True)
        self._pending.clear()

    def _seal(self, content: bytes, *, last: bool) -> None:
        self._file.write(self._cipher.encrypt(_nonce(self._number, last), content, None))
        self._number += 1


def seal(content: bytes, key: bytes, purpose: str) -> bytes:
    """Encrypt bytes in memory, in the format of a file."""
    sealed = io.BytesIO()
    writer = SealedWriter(sealed, key, purpose)
    writer.write(content)
    writer.finish()
    return sealed.getvalue()


def unseal(file: IO[bytes], key: bytes, purpose: str) -> bytes:
    """Decrypt a file.

    Raises:
        FailureError: it was changed or cut off, has another purpose, or was encrypted with another key.
    """
    head = file.read(len(_MAGIC) + _SALT_BYTES)
    damaged = FailureError(
        "a stored file cannot be decrypted",
        expected="an unchanged file, and the key that it was encrypted with",
        do=f"restore the key file of the job store, or {KEY_VARIABLE}",
    )
    if len(head) != len(_MAGIC) + _SALT_BYTES or not head.startswith(_MAGIC):
        raise damaged
    cipher, plain, number = _cipher(key, head[len(_MAGIC) :], purpose), bytearray(), 0
    chunk = file.read(CHUNK_BYTES + _TAG_BYTES)
    while True:
        following = file.read(CHUNK_BYTES + _TAG_BYTES)
        try:
            plain += cipher.decrypt(_nonce(number, not following), chunk, None)
        except InvalidTag:
            raise damaged from None
        if not following:
            return bytes(plain)
        chunk, number = following, number + 1


def unseal_bytes(content: bytes, key: bytes, purpose: str) -> bytes:
    """Decrypt the result of `seal`; raises as `unseal`."""
    return unseal(io.BytesIO(content), key, purpose)


def load_key(folder: Path) -> bytes:
    """Return the key of a job store: that of GTVRAY_JOBS_KEY, or of the file `key` in its folder, which is created.

    Raises:
        ConfigError: the key is not 32 bytes as base64.
    """
    path = folder / "key"
    text = os.environ.get(KEY_VARIABLE)
    if text is None:
        try:
            # Complete before it has its name: two processes may start at once, and one may be killed here.
            temporary = folder / f".key-{os.urandom(8).hex()}"
            handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(handle, "wb") as file:
                file.write(base64.b64encode(os.urandom(_KEY_BYTES)) + b"\n")
                file.flush()
                os.fsync(file.fileno())
            os.link(temporary, path)
        except FileExistsError:
            pass
        finally:
            temporary.unlink(missing_ok=True)
        text = path.read_bytes().decode("ascii", "replace")
    try:
        key = base64.b64decode(text.strip(), validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if len(key) != _KEY_BYTES:
        raise ConfigError(
            "the key of the job store is invalid",
            where=KEY_VARIABLE if KEY_VARIABLE in os.environ else path,
            expected=f"{_KEY_BYTES} bytes as base64",
            do="python3 -c 'import os, base64; print(base64.b64encode(os.urandom(32)).decode())'",
        )
    return key


def _cipher(key: bytes, salt: bytes, purpose: str) -> AESGCM:
    return AESGCM(HKDF(SHA256(), _KEY_BYTES, salt, purpose.encode()).derive(key))


def _nonce(number: int, last: bool) -> bytes:
    return number.to_bytes(11, "big") + bytes([last])
