"""The upload spool: encryption, limits, slow bodies, a full disk, and folders of gateways that died."""

from __future__ import annotations

import asyncio
import errno
import os
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.requests import Request
from starlette.types import Message

from gtvray.config import ServingConfig
from gtvray.errors import BusyError, ClientLimitError, FailureError, SlowBodyError, StorageFullError
from gtvray.io import encode_nifti
from gtvray.serving.transfer import uploads
from gtvray.serving.transfer.sealed import FRAME_BYTES, SealedWriter, new_key, open_sealed
from gtvray.serving.transfer.spool import Spool, default_parent, remove_abandoned
from gtvray.serving.transfer.uploads import UploadLimits, spool_upload

from ..conftest import TOKEN, make_scan
from ..local_api import make_api, problem_of

SCAN = encode_nifti(make_scan((20, 20, 20)), compress=False)


@pytest.mark.parametrize("size", [0, 1, FRAME_BYTES - 1, FRAME_BYTES, FRAME_BYTES + 1, 3 * FRAME_BYTES + 17])
def test_sealed_file_is_read_back_from_any_position(tmp_path: Path, size: int) -> None:
    content, key = os.urandom(size), new_key()
    writer = SealedWriter(tmp_path / "sealed", key)
    for start in range(0, size, 100_001):
        writer.write(content[start : start + 100_001])
    writer.close()
    assert (tmp_path / "sealed").stat().st_mode & 0o777 == 0o600
    with open_sealed(tmp_path / "sealed", key, size) as file:
        assert file.read() == content
        for position in (0, size // 2, max(0, size - 3)):
            file.seek(position)
            assert file.read(70_000) == content[position : position + 70_000]
        assert file.seek(0, os.SEEK_END) == size


@pytest.mark.parametrize("fault", ["changed", "cut", "extended", "frames exchanged", "another key", "missing"])
def test_changed_sealed_file_is_refused(tmp_path: Path, fault: str) -> None:
    path, key, size = tmp_path / "sealed", new_key(), 2 * FRAME_BYTES
    writer = SealedWriter(path, key)
    writer.write(os.urandom(size))
    writer.close()
    stored = path.read_bytes()
    half = len(stored) // 2
    if fault == "changed":
        path.write_bytes(stored[:100] + bytes([stored[100] ^ 1]) + stored[101:])
    elif fault == "cut":
        path.write_bytes(stored[:half])
    elif fault == "extended":
        path.write_bytes(stored + b"x")
    elif fault == "frames exchanged":
        path.write_bytes(stored[half:] + stored[:half])
    elif fault == "another key":
        key = new_key()
    else:
        path.unlink()
    with pytest.raises(FailureError, match="stored file"), open_sealed(path, key, size) as file:
        file.read()


def request_of(chunks: list[bytes], pause_s: float = 0.0) -> Request:
    """A request whose body arrives in these chunks."""
    left = iter(chunks)

    async def receive() -> Message:
        await asyncio.sleep(pause_s)
        chunk = next(left, None)
        return {"type": "http.request", "body": chunk or b"", "more_body": chunk is not None}

    return Request({"type": "http", "method": "POST", "path": "/", "headers": []}, receive)


def test_body_is_encrypted_on_disk_and_gone_afterwards(tmp_path: Path) -> None:
    content = SCAN * 40
    spool = Spool(tmp_path, 1 << 30, 1 << 30)

    async def run() -> None:
        async with spool.create("client") as file:
            chunks = [content[start : start + 65_536] for start in range(0, len(content), 65_536)]
            body = await spool_upload(request_of(chunks), file, UploadLimits(1 << 30, 1))
            assert body.size == spool.used_bytes == len(content)
            assert SCAN[:64] not in body.path.read_bytes()
            with body.open() as opened:
                assert opened.read() == content
            assert str(body.key) not in repr(body)
        assert not body.path.exists()

    asyncio.run(run())
    assert spool.used_bytes == 0
    assert [path.name for path in spool.folder.iterdir()] == ["lock"]
    spool.close()
    assert list(tmp_path.iterdir()) == []


def test_body_below_the_least_rate_is_given_up_and_a_fast_one_with_pauses_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(uploads, "PATIENCE_S", 0.3)

    async def run(chunk: bytes, pause_s: float, count: int) -> None:
        request, limits = request_of([chunk] * count, pause_s), UploadLimits(1 << 20, 1000)
        spool = Spool(None, 1 << 30, 1 << 30)
        try:
            async with spool.create("client") as file:
                await spool_upload(request, file, limits)
        finally:
            spool.close()

    asyncio.run(run(SCAN[:1000], 0.1, 8))
    with pytest.raises(SlowBodyError, match="arrives too slowly"):
        asyncio.run(run(SCAN[:10], 0.1, 8))
    with pytest.raises(SlowBodyError, match="arrives too slowly"):
        asyncio.run(run(SCAN[:1000], 0.5, 2))


def test_limits_per_client_and_in_all(tmp_path: Path) -> None:
    spool = Spool(tmp_path, limit_bytes=1000, client_limit_bytes=600)

    async def run() -> None:
        async with spool.create("one") as one, spool.create("two") as two:
            await one.write(bytes(500))
            with pytest.raises(ClientLimitError, match="this client's uploads"):
                spool.require_space("one", 101)
            spool.require_space("two", 500)
            with pytest.raises(BusyError, match="spool is full"):
                spool.require_space("two", 501)
            with pytest.raises(ClientLimitError):
                await one.write(bytes(101))
            await two.write(bytes(500))
            with pytest.raises(BusyError, match="spool is full"):
                await two.write(bytes(1))
        spool.require_space("one", 600)

    asyncio.run(run())
    with pytest.raises(StorageFullError, match="disk of the upload spool is full"):
        Spool(tmp_path, 1 << 60, 1 << 60).require_space("one", 1 << 59)


def send(folder: Path, body: Any, serving: ServingConfig, headers: dict[str, str], spool: Spool) -> httpx.Response:
    async def call() -> httpx.Response:
        transport = httpx.ASGITransport(app=make_api(folder, serving, spool=spool), raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            bearer = {"Authorization": f"Bearer {TOKEN}"}
            return await client.post("/v1/predict", content=body, headers={**bearer, **headers})

    return asyncio.run(call())


async def unread() -> AsyncIterator[bytes]:
    raise AssertionError("the body was read")
    yield b""


def test_body_that_exceeds_the_limits_is_refused_before_it_is_read(tmp_path: Path) -> None:
    spool = Spool(tmp_path, 1 << 20, 1 << 19)
    response = send(tmp_path, unread(), ServingConfig(), {"Content-Length": str(600_000)}, spool)
    problem_of(response, 429, "urn:gtvray:ClientLimitError")
    assert int(response.headers["Retry-After"]) > 0
    spool.count("another", 1 << 20)
    response = send(tmp_path, unread(), ServingConfig(), {"Content-Length": "100"}, spool)
    problem_of(response, 503, "urn:gtvray:BusyError")


def test_full_disk_is_reported_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spool = Spool(tmp_path, 1 << 30, 1 << 30)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(SealedWriter, "_write_frame", full)
    problem = problem_of(send(tmp_path, SCAN, ServingConfig(), {}, spool), 507, "urn:gtvray:StorageFullError")
    assert problem["title"] == "the disk of the upload spool is full"
    assert [path.name for path in spool.folder.iterdir()] == ["lock"]
    assert spool.used_bytes == 0


@pytest.fixture
def died(tmp_path: Path) -> Callable[[], Path]:
    """Leave the folder of a process that ended without removing it."""

    def leave() -> Path:
        code = (
            "import os, pathlib, sys; from gtvray.serving.transfer.spool import Spool;"
            "spool = Spool(pathlib.Path(sys.argv[1]), 1, 1); (spool.folder / 'x.body').write_bytes(b'x');"
            "print(spool.folder, flush=True); os._exit(9)"
        )
        done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False)
        return Path(done.stdout.strip())

    return leave


def test_folder_of_a_process_that_died_is_removed_and_those_of_others_stay(
    tmp_path: Path, died: Callable[[], Path]
) -> None:
    left, living = died(), Spool(tmp_path, 1, 1)
    assert not left.exists(), "removed by the next one"
    other = tmp_path / "gtvray-spool-unlike"
    other.mkdir()
    remove_abandoned(tmp_path)
    assert living.folder.exists()
    assert other.exists()
    living.close()


def test_temporary_folder_in_memory_is_not_used_for_the_spool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    temporary, disk, mounts = tmp_path / "a b", tmp_path / "var", tmp_path / "mountinfo"
    temporary.mkdir()
    disk.mkdir()
    monkeypatch.delenv("TMPDIR", raising=False)
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    root = "22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda1 rw\n"

    def mount(folder: Path, kind: str) -> str:
        escaped = str(folder).replace(" ", "\\040")
        return f"31 22 0:28 / {escaped} rw,nosuid shared:2 master:1 - {kind} {kind} rw\n"

    for mounted, expected in (
        (root, temporary),
        (root + mount(temporary, "tmpfs"), disk),
        (root + mount(temporary, "tmpfs") + mount(temporary, "ext4"), temporary),
        (root + mount(temporary, "tmpfs") + mount(disk, "tmpfs"), temporary),
        (root + mount(tmp_path, "tmpfs") + mount(disk, "ext4"), disk),
    ):
        mounts.write_text(mounted)
        assert default_parent(mounts, disk) == expected, mounted
    assert default_parent(mounts, tmp_path / "none") == temporary
    assert default_parent(tmp_path / "none", disk) == temporary
    monkeypatch.setenv("TMPDIR", str(temporary))
    assert default_parent(mounts, disk) == temporary
