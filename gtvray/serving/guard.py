"""The ASGI layer around the application: request ids, the token, CORS, errors as problem documents, a log line."""

from __future__ import annotations

import time
from collections.abc import Sequence

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gtvray.errors import ResourceError
from gtvray.runtime import PROXY_CALLBACK
from gtvray.serving.auth import check_token
from gtvray.serving.cors import add_cors_headers
from gtvray.serving.edge import EDGE
from gtvray.serving.logs import log_event
from gtvray.serving.problems import MEDIA_TYPE, http_problem, problem_response
from gtvray.serving.request_ids import REQUEST_ID_HEADER, request_id_of
from gtvray.serving.steering import check_steering

LIVENESS_PATH = "/healthz"
OPEN_PATHS = frozenset({LIVENESS_PATH, "/readyz"})


class Guard:
    """Wraps the application.

    Args:
        app: what it guards.
        token: what a request outside OPEN_PATHS must bear; OPTIONS needs none, as browsers send none with it.
        origins: of pages that may call from a browser.
    """

    def __init__(self, app: ASGIApp, token: str, origins: Sequence[str] = ()) -> None:
        self._app, self._token, self._origins = app, token, origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] == "websocket":
            # Nothing here speaks it; the application would answer without a token and without a document.
            request_id = request_id_of(Headers(scope=scope).getlist(REQUEST_ID_HEADER))
            await JSONResponse(http_problem(404, request_id), 404, media_type=MEDIA_TYPE)(scope, receive, send)
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, headers = time.monotonic(), Headers(scope=scope)
        request_id = request_id_of(headers.getlist(REQUEST_ID_HEADER))
        inner = _normalised(scope, request_id)
        answer = _Answer(scope["method"], headers, self._origins, request_id, send)
        try:
            self._check(inner, headers)
            await self._app(inner, receive, answer.send)
        except ClientDisconnect:
            pass
        except Exception as error:
            if answer.status:
                raise
            await problem_response(error, request_id)(scope, receive, answer.send)
        finally:
            route = getattr(inner.get("route"), "path", "none")
            log_event(
                "request",
                request_id,
                method=scope["method"],
                route=route,
                status=answer.status or "gone",
                ms=round(1000 * (time.monotonic() - began)),
            )

    def _check(self, scope: Scope, headers: Headers) -> None:
        check_steering(headers.raw)
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        if EDGE not in scope.get("extensions", {}) and path != LIVENESS_PATH:
            name, value = PROXY_CALLBACK
            raise ResourceError(
                "Ray Serve's HTTP proxy runs without gtvray's middleware",
                expected=f"{name}={value} in the environment of Ray",
                do="set it on every node before Ray starts, and start Ray again",
            )
        if path not in OPEN_PATHS and scope["method"] != "OPTIONS":
            check_token(headers.get("authorization"), self._token)


class _Answer:
    """What goes back: the request's id, CORS headers, no body to HEAD, and 204 to OPTIONS."""

    def __init__(self, method: str, request: Headers, origins: Sequence[str], request_id: str, send: Send) -> None:
        self._method, self._request, self._origins = method, request, origins
        self._request_id, self._send = request_id, send
        self._without_body = method == "HEAD"
        self.status = 0

    async def send(self, message: Message) -> None:
        """Pass a message of the application on."""
        if message["type"] == "http.response.start":
            message = self._started(message)
        elif message["type"] == "http.response.body" and self._without_body:
            message = {**message, "body": b""}
        await self._send(message)

    def _started(self, message: Message) -> Message:
        headers = MutableHeaders(raw=list(message.get("headers", [])))
        status = message["status"]
        if "allow" in headers:
            headers["Allow"] = _allowed(headers["allow"])
            if self._method == "OPTIONS" and status == 405:
                status, self._without_body = 204, True
                del headers["content-type"], headers["content-length"]
        headers[REQUEST_ID_HEADER] = self._request_id
        add_cors_headers(headers, self._request, self._origins)
        self.status = status
        return {**message, "status": status, "headers": headers.raw}


def _allowed(methods: str) -> str:
    """The methods of a route with those that every route has."""
    names = [name.strip() for name in methods.split(",")]
    return ", ".join(dict.fromkeys([*names, *(["HEAD"] if "GET" in names else []), "OPTIONS"]))


def _normalised(scope: Scope, request_id: str) -> Scope:
    """The request as the routes take it: HEAD like GET, and a trailing slash like none."""
    path = scope["path"]
    if path.endswith("/") and path.removeprefix(scope.get("root_path", "")) != "/":
        path = path[:-1]
    method = "GET" if scope["method"] == "HEAD" else scope["method"]
    state = {**scope.get("state", {}), "request_id": request_id}
    return {**scope, "path": path, "method": method, "state": state}
