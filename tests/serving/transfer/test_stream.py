"""Scans and masks between a gateway and a replica on another node, over HTTP."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path

import httpx
import pytest

from gtvray.errors import ResourceError
from gtvray.serving.transfer.sealed import new_key
from gtvray.serving.transfer.spool import Body, Spool
from gtvray.serving.transfer.stream import BodyStream
from gtvray.serving.transfer.work import Work, fetched

from ..client.test_client_retry import running

CONTENT = b"scan" * 100_000


def plain_body(folder: Path) -> Body:
    path = folder / "scan.nii"
    path.write_bytes(CONTENT)
    return Body(path, len(CONTENT), hashlib.sha256(CONTENT).hexdigest())


def work_of(body: Body, spool: Spool, address: str) -> Work:
    return Work(body, spool.path(".mask"), new_key(), spool.path(".at"), "gateway", address)


@pytest.mark.parametrize("encrypted", [True, False])
def test_scan_is_read_and_its_mask_comes_back(tmp_path: Path, encrypted: bool) -> None:
    spool, other, stream = Spool(tmp_path, 1 << 20, 1 << 20), Spool(tmp_path / "other", 0, 0), BodyStream()

    def call(body: Body) -> None:
        work = work_of(body, spool, stream.new_address())
        with stream.offered(work):
            assert not stream.was_fetched(work)
            with fetched(work, other) as here:
                assert (here.body.path == body.path) is not encrypted, "what every node can read is not copied"
                assert here.journal.parent == here.result.parent == other.folder
                with here.body.open() as file:
                    assert file.read() == CONTENT
                here.write_result(b"mask")
            assert stream.was_fetched(work), "a death on the other node counts against it"
            assert not stream.was_fetched(work)
            assert work.read_result(4) == b"mask"
        assert httpx.get(work.stream).status_code == 404
        work.remove()

    async def run() -> None:
        async with spool.create("client") as file:
            await file.write(CONTENT)
            await asyncio.to_thread(call, await file.finish() if encrypted else plain_body(tmp_path))

    with running(stream.app) as url:
        stream.url = url
        asyncio.run(run())
        with (
            pytest.raises(ResourceError, match="between two nodes"),
            fetched(work_of(plain_body(tmp_path), spool, f"{url}/guess"), other),
        ):
            pass
    assert [path.name for path in other.folder.iterdir()] == ["lock"]
    assert [path.name for path in spool.folder.iterdir()] == ["lock"]
