"""HTTP connections of a gateway, with a time limit for the head of each request."""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

# Time limit for the head of a request; uvicorn itself limits only the idle time between two requests.
HEAD_S = 20.0


class Connection(HttpToolsProtocol):
    """uvicorn's connection with a time limit for the head of each request."""

    _limit: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's
        """Start the time limit for the first head."""
        super().connection_made(transport)
        self._start()

    def on_message_begin(self) -> None:
        """Restart the time limit for the head of a request."""
        self._start()
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Cancel the time limit."""
        self._end()
        super().on_headers_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancel the time limit."""
        self._end()
        super().connection_lost(exc)

    def _start(self) -> None:
        self._end()
        self._limit = self.loop.call_later(HEAD_S, self.transport.close)

    def _end(self) -> None:
        if self._limit is not None:
            self._limit.cancel()
            self._limit = None
