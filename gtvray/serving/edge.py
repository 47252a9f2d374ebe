"""ASGI middleware in Ray Serve's HTTP proxies, applied before Serve reads a request and after it has responded.

Serve's proxy copies a client's request id into its response and every log line, acts on some request headers, and
responds in plain text where no replica can. A replica cannot change any of this. Serve takes middlewares for its
proxies only from the environment variable RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH, which must be set on every node
that runs a proxy (`gtvray.runtime.PROXY_CALLBACK`).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware import Middleware
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gtvray.errors import BusyError, DeadlineError, GtvrayError, RequestError, ResourceError
from gtvray.serving.problems import MEDIA_TYPE, http_problem, internal_error, problem_response
from gtvray.serving.request_log import REQUEST_ID_HEADER, request_id_of

# Marks the scope of a request that passed this middleware; the scope travels to the replica, and no client can set it.
EDGE = "gtvray.edge"

RawHeaders = Iterable[tuple[bytes, bytes]]
# The first lets a request continue, and keep its slot, after its client disconnected; the second sets its time limit.
_REFUSED = frozenset({"x-request-disconnect-disabled", "x-request-timeout-seconds"})
# These select a replica, which has no use here as replicas are interchangeable, and Serve would store their values.
_DROPPED = frozenset(
    {
        "serve-multiplexed-model-id",
        os.environ.get("RAY_SERVE_SESSION_ID_HEADER_KEY", "x-session-id").lower().replace("_", "-"),
    }
)
_TRACING = frozenset({"traceparent", "tracestate"})


def middlewares() -> list[Middleware]:
    """Return the middlewares of Serve's proxies; Serve calls this in each of them."""
    return [Middleware(Edge)]


def check_serve_headers(headers: RawHeaders) -> None:
    """Reject request headers that control Serve's proxy, or that it cannot decode.

    Raises:
        RequestError: names the header, never its value.
    """
    for name, value in headers:
        normalised = _normalised(name)
        if normalised in _REFUSED:
            raise RequestError(
                "this request header is not allowed",
                found=normalised,
                do="omit it: the server sets the time limit of a request, and cancels it when its client disconnects",
            )
        if normalised in _DROPPED and not value.isascii():
            raise RequestError("a header's value is not ASCII", found=normalised, do="omit the header")


class Edge:
    """Middleware around Serve's proxy: assigns request ids, filters headers, and converts errors to problem documents.

    Args:
        app: the proxy.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass one request on to Serve, or reject it."""
        if scope["type"] not in ("http", "websocket"):
            return await self._app(scope, receive, send)
        request_id = request_id_of(Headers(scope=scope).getlist(REQUEST_ID_HEADER))
        response = _Response(scope, receive, send, request_id)
        disconnected = False

        async def receive_and_watch() -> Message:
            nonlocal disconnected
            message = await receive()
            disconnected = disconnected or message["type"] == "http.disconnect"
            return message

        try:
            check_serve_headers(scope["headers"])
            await self._app(_forwarded(scope, request_id), receive_and_watch, response.send)
        except Exception as error:
            if response.started:
                raise
            await response.send_error(error)
        if scope["type"] == "http" and not response.started and not disconnected:
            # Serve sends nothing where a replica was lost, which its server would turn into an empty status 500.
            await response.send_error(
                ResourceError("the request was lost in the server before it was answered", do="send it again")
            )
        return None


class _Response:
    """Sends the response to a client, with the request id, and with a problem document for each error."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, request_id: str) -> None:
        self._scope, self._receive, self._send, self._request_id = scope, receive, send, request_id
        self.started = self._replaced = False

    async def send(self, message: Message) -> None:
        """Forward a message of Serve's, or replace a plain-text error by a problem document."""
        if self._replaced:
            return
        if message["type"] == "http.response.start":
            content_type = Headers(raw=[*map(tuple, message.get("headers", []))]).get("content-type", "text/plain")
            if message["status"] >= 400 and content_type.startswith("text/plain"):
                self._replaced = True
                await self._respond(_serve_problem(message["status"], self._request_id))
                return
        await self._send_with_id(message)

    async def send_error(self, error: Exception) -> None:
        """Send an error as a problem document."""
        await self._respond(problem_response(error, self._request_id))

    async def _respond(self, response: JSONResponse) -> None:
        await response(self._scope, self._receive, self._send_with_id)

    async def _send_with_id(self, message: Message) -> None:
        self.started = True
        if message["type"].endswith("http.response.start"):
            headers = [(bytes(name), bytes(value)) for name, value in message.get("headers", [])]
            message = {**message, "headers": headers}
            # Assignment replaces the request ids that Serve added, so that there is exactly one.
            MutableHeaders(raw=headers)[REQUEST_ID_HEADER] = self._request_id
        await self._send(message)


def _forwarded(scope: Scope, request_id: str) -> dict[str, Any]:
    """The scope that Serve's proxy receives."""
    header = REQUEST_ID_HEADER.lower().encode()
    headers = [(name, value) for name, value in _forwarded_headers(scope["headers"]) if name.lower() != header]
    extensions = {**scope.get("extensions", {}), EDGE: {}}
    return {**scope, "headers": [*headers, (header, request_id.encode())], "extensions": extensions}


def _forwarded_headers(headers: RawHeaders) -> Iterator[tuple[bytes, bytes]]:
    for name, value in headers:
        normalised = _normalised(name)
        # Serve decodes these values as UTF-8 unchecked; other bytes would end in an empty status 500.
        if normalised not in _DROPPED and (normalised not in _TRACING or value.isascii()):
            yield name, value


def _normalised(name: bytes) -> str:
    """A header's name as Serve compares it: `-` and `_` are equivalent."""
    return name.decode("latin-1").lower().replace("_", "-")


def _serve_problem(status: int, request_id: str) -> JSONResponse:
    """The problem document that replaces an error text of Serve's, which may contain a path."""
    error: GtvrayError | None = None
    if status == 408:
        error = DeadlineError("the response was not ready in time")
    elif status in (429, 503):
        error = BusyError("the endpoint accepts no requests at the moment", do="retry in a few seconds")
    elif status >= 500:
        error = internal_error()
    if error is not None:
        return problem_response(error, request_id)
    return JSONResponse(http_problem(status, request_id), status, media_type=MEDIA_TYPE)
