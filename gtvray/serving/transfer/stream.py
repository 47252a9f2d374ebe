"""The gateway's stream: encrypted scans to replicas on other nodes, and encrypted masks back.

Each scan has an address of its own with 256 random bits, which is passed only to the replica that segments it and is
removed after the response. The transferred files are encrypted, and their keys are never sent through the stream.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager

import anyio
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route

from gtvray.serving.transfer.work import Work

# Limit of the size of a mask, far above the compressed mask of any scan that is admitted.
_MOST_RESULT_BYTES = 1 << 30


class BodyStream:
    """The ASGI application of the stream.

    Attributes:
        app: the application.
        url: where other nodes reach it; empty while the cluster has no other nodes.
    """

    def __init__(self) -> None:
        self.url = ""
        self._offered: dict[str, Work] = {}
        self._fetched: set[str] = set()
        route = Route("/{ticket}", self._transfer, methods=["GET", "PUT"])
        self.app = Starlette(routes=[route])

    def new_address(self) -> str:
        """A new address for one scan; empty while the cluster has no other nodes."""
        return f"{self.url}/{secrets.token_urlsafe(32)}" if self.url else ""

    @contextmanager
    def offered(self, work: Work) -> Iterator[None]:
        """Serve the files of a work item at its address within a `with` block."""
        if work.stream:
            self._offered[work.stream] = work
        try:
            yield
        finally:
            self._offered.pop(work.stream, None)

    def was_fetched(self, work: Work) -> bool:
        """Return whether another node has fetched the scan, and clear this flag."""
        fetched = work.stream in self._fetched
        self._fetched.discard(work.stream)
        return fetched

    async def _transfer(self, request: Request) -> Response:
        work = self._offered.get(f"{self.url}/{request.path_params['ticket']}")
        if work is None:
            return Response(status_code=404)
        if request.method == "GET":
            self._fetched.add(work.stream)
            return FileResponse(work.body.path) if work.body.key is not None else Response(status_code=204)
        count = 0
        async with await anyio.open_file(work.result, "xb") as file:
            async for chunk in request.stream():
                count += len(chunk)
                if count > _MOST_RESULT_BYTES:
                    return Response(status_code=413)
                await file.write(chunk)
        return Response(status_code=204)
