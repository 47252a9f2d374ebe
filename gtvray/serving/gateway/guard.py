"""ASGI middleware around the application: request ids, bearer token, CORS, problem documents, and request logging.

CORS: https://fetch.spec.whatwg.org/#http-cors-protocol
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import AbstractContextManager

from opentelemetry.trace import Span, SpanKind
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gtvray.serving.gateway.access import Access
from gtvray.serving.gateway.audit import AuditLog
from gtvray.serving.gateway.refusals import Refusals
from gtvray.serving.gateway.remainder import Remainder
from gtvray.serving.gateway.tokens import Role
from gtvray.serving.metrics import REQUESTS
from gtvray.serving.problems import MEDIA_TYPE, http_problem, problem_response
from gtvray.serving.request_log import REQUEST_ID_HEADER, log_event, request_id_of
from gtvray.serving.tracing import NO_TRACES, Tracing
from gtvray.serving.transfer.uploads import UploadLimits

KUBERAY_PATH = "/-/healthz"
OPEN_PATHS = frozenset({"/healthz", "/readyz", KUBERAY_PATH})
_UNTRACED = OPEN_PATHS | {"/metrics"}
# Minimum role of these paths and those below them; other paths outside OPEN_PATHS require any valid token.
_ROLES = {"/v1/jobs": Role.JOBS, "/metrics": Role.ADMIN}
_CORS_REQUEST_HEADERS = "Authorization, Content-Type, Idempotency-Key, X-Request-ID, traceparent, tracestate"
_CORS_EXPOSED_HEADERS = (
    "X-Request-ID, Location, Retry-After, WWW-Authenticate, X-Gtvray-Model-Digest, X-Gtvray-Model-Version, "
    "X-Gtvray-Volume-Ml, X-Gtvray-Mode, X-Gtvray-Fallback, X-Gtvray-Patches, X-Gtvray-Patches-Skipped, "
    "X-Gtvray-Volume-Skipped-Share, X-Gtvray-Out-Of-Domain, X-Gtvray-Milliseconds, X-Gtvray-Notice"
)
_CORS_MAX_AGE_S = 600


class Guard:
    """Middleware around the application.

    Args:
        app: the application.
        access: checks the token, required outside OPEN_PATHS except for OPTIONS, which browsers send without one.
        limits: limits of the part of a body that is discarded after an early response.
        origins: origins whose pages may call the endpoint from a browser.
        tracing: receives a span for each request.
        audit: records refused requests.
    """

    def __init__(
        self,
        app: ASGIApp,
        access: Access,
        limits: UploadLimits,
        *,
        origins: Sequence[str] = (),
        tracing: Tracing = NO_TRACES,
        audit: AuditLog | None = None,
    ) -> None:
        self._app, self._access, self._origins, self._tracing = app, access, origins, tracing
        self._limits = limits
        self._refusals = Refusals(audit or AuditLog(None))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Process one request."""
        if scope["type"] == "websocket":
            # There are no WebSocket routes; the application would respond without token check or problem document.
            request_id = request_id_of(Headers(scope=scope).getlist(REQUEST_ID_HEADER))
            await JSONResponse(http_problem(404, request_id), 404, media_type=MEDIA_TYPE)(scope, receive, send)
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, headers = time.monotonic(), Headers(scope=scope)
        request_id = request_id_of(headers.getlist(REQUEST_ID_HEADER))
        inner = _normalised(scope, request_id)
        remainder = Remainder(scope, headers, receive, self._limits)
        response = _Response(scope["method"], headers, self._origins, request_id, send, remainder=remainder)
        try:
            with self._request_span(inner, headers) as span:
                await self._answer(inner, headers, remainder.receive, response)
                span.update_name(f"{inner['method']} {_route(inner)}")
                span.set_attributes({"http.route": _route(inner), "http.response.status_code": response.status})
        finally:
            route, status = _route(inner), response.status or "disconnected"
            REQUESTS.labels(route, inner["method"] if route != "none" else "none", status).inc()
            log_event(
                "request",
                request_id,
                method=scope["method"],
                route=route,
                status=status,
                ms=round(1000 * (time.monotonic() - began)),
                version=response.version or "none",
            )

    async def _answer(self, scope: Scope, headers: Headers, receive: Receive, response: _Response) -> None:
        """Run the application; respond to an error with a problem document."""
        try:
            self._admit(scope, headers)
            await self._app(scope, receive, response.send)
        except ClientDisconnect:
            pass
        except Exception as error:
            await self._refusals.record(scope, error)
            if response.status:
                raise
            await problem_response(error, scope["state"]["request_id"])(scope, receive, response.send)

    def _request_span(self, scope: Scope, headers: Headers) -> AbstractContextManager[Span]:
        """The span of a request, which continues the client's trace; probes and metrics have none."""
        tracing = NO_TRACES if scope["path"] in _UNTRACED else self._tracing
        known = {"http.request.method": scope["method"], "gtvray.request_id": scope["state"]["request_id"]}
        return tracing.span(scope["method"], headers, SpanKind.SERVER, known)

    def _admit(self, scope: Scope, headers: Headers) -> None:
        """Authenticate and authorize a request, and set its client, which is None where no token is required."""
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        scope["state"]["client"] = None
        if path in OPEN_PATHS or scope["method"] == "OPTIONS":
            return
        client = scope["state"]["client"] = self._access.identify(headers.get("authorization"))
        self._access.count(client)
        for above, role in _ROLES.items():
            if path == above or path.startswith(f"{above}/"):
                client.require(role)


class _Response:
    """Sends a response with request id and CORS headers, without a body to HEAD, and with status 204 to OPTIONS."""

    def __init__(
        self,
        method: str,
        request: Headers,
        origins: Sequence[str],
        request_id: str,
        send: Send,
        *,
        remainder: Remainder,
    ) -> None:
        self._method, self._request, self._origins = method, request, origins
        self._request_id, self._send, self._remainder = request_id, send, remainder
        self._without_body = method == "HEAD"
        self._closes_at_once = self._closes = False
        self.status, self.version = 0, ""

    async def send(self, message: Message) -> None:
        """Forward a message of the application."""
        if message["type"] == "http.response.start":
            message = self._start(message)
        elif message["type"] == "http.response.body" and self._without_body:
            message = {**message, "body": b""}
        is_last = message["type"] == "http.response.body" and not message.get("more_body", False)
        if is_last and self._remainder.unread and not self._closes_at_once:
            # The client has the complete response before the server reads on.
            await self._send({**message, "more_body": True})
            if not await self._remainder.discard() and not self._closes:
                # The server closes the connection of a response that does not end.
                return
            message = {"type": "http.response.body", "body": b""}
        await self._send(message)

    def _start(self, message: Message) -> Message:
        headers = MutableHeaders(raw=list(message.get("headers", [])))
        status = message["status"]
        if "allow" in headers:
            headers["Allow"] = _allowed_methods(headers["allow"])
            if self._method == "OPTIONS" and status == 405:
                status, self._without_body = 204, True
                del headers["content-type"], headers["content-length"]
        headers[REQUEST_ID_HEADER] = self._request_id
        add_cors_headers(headers, self._request, self._origins)
        # After a body that arrives too slowly the rest is not awaited.
        self._closes_at_once = headers.get("connection") == "close"
        self._closes = self._closes_at_once or self._remainder.large
        if self._closes:
            headers["Connection"] = "close"
        self.status, self.version = status, headers.get("X-Gtvray-Model-Version", "")
        return {**message, "status": status, "headers": headers.raw}


def add_cors_headers(response: MutableHeaders, request: Headers, origins: Sequence[str]) -> None:
    """Allow the page that sent a request to read the response, if its origin is one of `origins`.

    Args:
        response: headers of the response; those to OPTIONS include `Allow`, which lists the methods.
        request: headers of the request.
        origins: allowed origins, as scheme://host[:port].
    """
    if not origins:
        return
    response.add_vary_header("Origin")
    origin = request.get("origin")
    if origin is None or origin not in origins:
        return
    response["Access-Control-Allow-Origin"] = origin
    if "access-control-request-method" in request and "allow" in response:
        response["Access-Control-Allow-Methods"] = response["allow"]
        response["Access-Control-Allow-Headers"] = _CORS_REQUEST_HEADERS
        response["Access-Control-Max-Age"] = str(_CORS_MAX_AGE_S)
    else:
        response["Access-Control-Expose-Headers"] = _CORS_EXPOSED_HEADERS


def _route(scope: Scope) -> str:
    """Path template of the route that handled a request; "none" without one."""
    return str(getattr(scope.get("route"), "path", "none"))


def _allowed_methods(methods: str) -> str:
    """The methods of a route, with HEAD for GET, and OPTIONS."""
    names = [name.strip() for name in methods.split(",")]
    return ", ".join(dict.fromkeys([*names, *(["HEAD"] if "GET" in names else []), "OPTIONS"]))


def _normalised(scope: Scope, request_id: str) -> Scope:
    """The scope for the routes: HEAD becomes GET, and a trailing slash is removed; the state keeps the method sent."""
    path = scope["path"]
    if path.endswith("/") and path.removeprefix(scope.get("root_path", "")) != "/":
        path = path[:-1]
    method = "GET" if scope["method"] == "HEAD" else scope["method"]
    state = {**scope.get("state", {}), "request_id": request_id, "method": scope["method"]}
    return {**scope, "path": path, "method": method, "state": state}
