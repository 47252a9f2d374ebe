"""The key of the job store, which encrypts the keys of files and the result documents.

A file is encrypted under a random key of its own (`gtvray.serving.transfer.sealed`). That key is stored in the tables,
encrypted under the store's key with AES-256-GCM. The purpose of a key or document is authenticated as associated data,
so that one cannot be substituted for another. Nonces are random: NIST SP 800-38D, section 8.3, allows 2^32 under one
key.
"""

from __future__ import annotations

import base64
import binascii
import os
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from gtvray.errors import ConfigError, FailureError
from gtvray.runtime import create_private_file

KEY_VARIABLE = "GTVRAY_JOBS_KEY"
_KEY_BYTES, _NONCE_BYTES = 32, 12


def seal(content: bytes, key: bytes, purpose: str) -> bytes:
    """Encrypt a key or a small document.

    Args:
        content: what to encrypt.
        key: the key of the job store, 32 bytes.
        purpose: what the content is for, such as `job/0/input`; needed to decrypt it.
    """
    nonce = os.urandom(_NONCE_BYTES)
    return nonce + AESGCM(key).encrypt(nonce, content, purpose.encode())


def unseal(sealed: bytes, key: bytes, purpose: str) -> bytes:
    """Decrypt the result of `seal`.

    Raises:
        FailureError: it was modified or truncated, has another purpose, or was encrypted with another key.
    """
    try:
        return AESGCM(key).decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], purpose.encode())
    except (InvalidTag, ValueError):
        raise FailureError(
            "a stored file cannot be decrypted",
            expected="an unchanged job store, and the key that it was encrypted with",
            do=f"restore the key file of the job store, or {KEY_VARIABLE}",
        ) from None


def load_key(folder: Path) -> bytes:
    """Return the key of a job store: GTVRAY_JOBS_KEY, or the file `key` in its folder, created if it does not exist.

    Raises:
        ConfigError: the key is not 32 bytes as base64.
    """
    path = folder / "key"
    text = os.environ.get(KEY_VARIABLE)
    if text is None:
        create_private_file(path, base64.b64encode(os.urandom(_KEY_BYTES)).decode() + "\n")
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
            do="create one: python3 -c 'import os, base64; print(base64.b64encode(os.urandom(32)).decode())'",
        )
    return key
