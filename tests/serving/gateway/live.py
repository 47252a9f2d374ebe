"""The gateway's server on a real socket, in a thread of the test's process."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from starlette.types import ASGIApp

from gtvray.serving.gateway.deployment import _server, listen
from gtvray.serving.transfer.work import Work

from ..conftest import TOKEN


@contextmanager
def serving(app: ASGIApp, certificate: Path | None = None, key: Path | None = None) -> Iterator[int]:
    """Serve an application in a thread; yields the port."""
    server, listening = _server(app, 1, certificate, key), listen("127.0.0.1", 0)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve([listening])))
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield int(listening.getsockname()[1])
    server.should_exit = True
    thread.join(20)


def start_upload(port: int, size: int, path: str = "/v1/predict", media_type: str = "") -> socket.socket:
    """A connection that has sent the head of a request with a body of this size."""
    client = socket.create_connection(("127.0.0.1", port), timeout=20)
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\nContent-Length: {size}\r\n"
    client.sendall(f"{head}Content-Type: {media_type}\r\n\r\n".encode())
    return client


async def at_once(work: Work, content: bytes) -> None: ...
