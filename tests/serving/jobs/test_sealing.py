"""Encryption of stored files: round trips, and that no change, cut or exchange goes unnoticed."""

from __future__ import annotations

import base64
import io
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from gtvray.errors import ConfigError, FailureError
from gtvray.serving.jobs.sealing import CHUNK_BYTES, KEY_VARIABLE, SealedWriter, load_key, seal, unseal_bytes

KEY = bytes(range(32))


@pytest.mark.parametrize("size", [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 2 * CHUNK_BYTES, 2_500_000])
def test_content_written_in_pieces_is_read_back(size: int) -> None:
    content, file = os.urandom(size), io.BytesIO()
    writer = SealedWriter(file, KEY, "job/0/input")
    for start in range(0, size, 700_001):
        writer.write(content[start : start + 700_001])
    writer.finish()
    sealed = file.getvalue()
    assert unseal_bytes(sealed, KEY, "job/0/input") == content
    assert size < 64 or content[:64] not in sealed
    assert sealed != seal(content, KEY, "job/0/input"), "every file has a key of its own"


def test_any_change_is_noticed() -> None:
    chunk, tag = CHUNK_BYTES, 16
    sealed = seal(bytes(chunk) + b"\1" * chunk + b"end", KEY, "a")
    start, stored = 40, chunk + tag
    first, second, last = sealed[start : start + stored], sealed[start + stored : start + 2 * stored], sealed[-19:]
    head = sealed[:start]
    assert head + first + second + last == sealed
    changed = {
        "a bit": sealed[:-1] + bytes([sealed[-1] ^ 1]),
        "the salt": head[:-1] + bytes([head[-1] ^ 1]) + sealed[start:],
        "cut after a chunk": head + first + second,
        "cut within": sealed[:-1],
        "order": head + second + first + last,
        "left out": head + first + last,
        "appended": sealed + b"x",
        "no chunk": head,
        "no head": b"",
        "magic": b"X" + sealed[1:],
    }
    for content in changed.values():
        with pytest.raises(FailureError, match="cannot be decrypted"):
            unseal_bytes(content, KEY, "a")
    for key, purpose in ((KEY, "b"), (bytes(32), "a")):
        with pytest.raises(FailureError, match="cannot be decrypted"):
            unseal_bytes(sealed, key, purpose)


def test_key_is_created_once_and_readable_by_its_owner_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    with ThreadPoolExecutor(8) as pool:
        keys = set(pool.map(load_key, [tmp_path] * 8))
    assert len(keys) == 1
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["key"]
    given = base64.b64encode(KEY).decode()
    monkeypatch.setenv(KEY_VARIABLE, given)
    assert load_key(tmp_path) == KEY
    for invalid in ("", "short", given[:-4], "é"):
        monkeypatch.setenv(KEY_VARIABLE, invalid)
        with pytest.raises(ConfigError, match="key of the job store"):
            load_key(tmp_path)
