"""Encryption of the job store: round trips, and detection of changed, truncated and exchanged files."""

from __future__ import annotations

import base64
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from gtvray.errors import ConfigError, FailureError
from gtvray.io import encode_nifti
from gtvray.serving.jobs.files import JobFiles
from gtvray.serving.jobs.records import Claim, NewVolume
from gtvray.serving.jobs.sealing import KEY_VARIABLE, load_key, seal, unseal
from gtvray.serving.transfer.sealed import FRAME_BYTES

from ..conftest import make_scan

KEY, JOB = bytes(range(32)), "0" * 32


HEAD = encode_nifti(make_scan((8, 8, 8)), compress=False)[:352]


def scan_of(size: int) -> bytes:
    """Bytes that start like a NIfTI file."""
    return HEAD + os.urandom(size - len(HEAD))


class Store:
    """The files of one job."""

    def __init__(self, folder: Path, key: bytes = KEY) -> None:
        self.files, self.folder = JobFiles(folder, key), folder / "files" / JOB

    def add(self, number: int, content: bytes) -> Claim:
        """Store an input that is written in pieces."""
        new = self.files.new_input(JOB, number, 1 << 30)
        for start in range(0, len(content), 70_001):
            new.write(content[start : start + 70_001])
        return claim_of(number, new.finish())

    def read(self, claim: Claim) -> bytes:
        with self.files.input_body(claim).open() as file:
            return file.read()


def claim_of(number: int, new: NewVolume, attempt: int = 1) -> Claim:
    return Claim(JOB, number, "me", attempt, new.reference, new.input)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path)
    store.folder.mkdir()
    return store


@pytest.mark.parametrize("size", [400, FRAME_BYTES - 1, FRAME_BYTES, FRAME_BYTES + 1, 2 * FRAME_BYTES, 2_500_000])
def test_inputs_and_masks_are_read_back(store: Store, size: int) -> None:
    content = scan_of(size)
    claims = [store.add(number, content) for number in range(2)]
    assert [store.read(claim) for claim in claims] == [content, content]
    first, second = ((store.folder / f"input-{number}").read_bytes() for number in range(2))
    assert content[:64] not in first
    assert first != second, "every file has a key of its own"
    mask, stored_bytes = store.files.write_mask(claims[0], content)
    assert store.files.read_mask(JOB, 0, 1, mask) == content
    assert (store.folder / "mask-0-1").stat().st_size == stored_bytes


def test_any_change_of_a_file_is_noticed(store: Store) -> None:
    content = scan_of(2 * FRAME_BYTES + 3)
    claim = store.add(0, content)
    path, frame = store.folder / "input-0", FRAME_BYTES + 16
    sealed = path.read_bytes()
    first, second, last = sealed[:frame], sealed[frame : 2 * frame], sealed[2 * frame :]
    assert len(last) == 19
    other = store.add(1, content)
    changed = {
        "a bit": sealed[:-1] + bytes([sealed[-1] ^ 1]),
        "the first bit": bytes([sealed[0] ^ 1]) + sealed[1:],
        "cut after a frame": first + second,
        "cut within": sealed[:-1],
        "order": second + first + last,
        "left out": first + last,
        "appended": sealed + b"x",
        "empty": b"",
        "another input": (store.folder / "input-1").read_bytes(),
    }
    for damaged in changed.values():
        path.write_bytes(damaged)
        with pytest.raises(FailureError, match="modified or truncated"):
            store.read(claim)
    path.unlink()
    with pytest.raises(FailureError, match="missing"):
        store.read(claim)
    path.write_bytes(sealed)
    assert store.read(claim) == content
    exchanged = Claim(JOB, 0, "me", 1, other.reference, other.input)
    for files, volume in ((store.files, exchanged), (JobFiles(store.folder.parents[1], bytes(32)), claim)):
        with pytest.raises(FailureError, match="cannot be decrypted"):
            files.input_body(volume)


def test_any_change_of_a_document_is_noticed() -> None:
    sealed = seal(b"document", KEY, "a")
    assert unseal(sealed, KEY, "a") == b"document"
    assert sealed != seal(b"document", KEY, "a")
    changed = [sealed[:-1] + bytes([sealed[-1] ^ 1]), bytes([sealed[0] ^ 1]) + sealed[1:], sealed[:-1], sealed + b"x"]
    attempts = [(content, KEY, "a") for content in (*changed, sealed[:12], sealed[:5], b"")]
    for content, key, purpose in [*attempts, (sealed, KEY, "b"), (sealed, bytes(32), "a")]:
        with pytest.raises(FailureError, match="cannot be decrypted"):
            unseal(content, key, purpose)


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
