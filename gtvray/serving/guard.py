"""The ASGI layer every request passes: its id, the token, errors as problem documents, one log line."""

from __future__ import annotations

import logging
import re
import time
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gtvray.errors import FailureError, GtvrayError
from gtvray.serving.auth import check_token
from gtvray.serving.logs import LOGGER, log_event
from gtvray.serving.problems import MEDIA_TYPE, problem_headers

OPEN_PATHS = frozenset({"/healthz", "/readyz"})
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


class Guard:
    """Wraps the application.

    Args:
        app: what it guards.
        token: what a request outside OPEN_PATHS must bear.
    """

    def __init__(self, app: ASGIApp, token: str) -> None:
        self._app, self._token = app, token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        began, headers, status = time.monotonic(), Headers(scope=scope), 0
        request_id, given = _request_id(headers)
        scope.setdefault("state", {})["request_id"] = request_id

        async def send_marked(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                if not given:
                    MutableHeaders(scope=message)["X-Request-ID"] = request_id
            await send(message)

        try:
            if scope["path"] not in OPEN_PATHS:
                check_token(headers.get("authorization"), self._token)
            await self._app(scope, receive, send_marked)
        except ClientDisconnect:
            pass
        except Exception as error:
            if status:
                raise
            await problem_response(error, request_id)(scope, receive, send_marked)
        finally:
            route = getattr(scope.get("route"), "path", "none")
            log_event(
                "request",
                request_id,
                method=scope["method"],
                route=route,
                status=status or "gone",
                ms=round(1000 * (time.monotonic() - began)),
            )
        return None


def problem_response(error: Exception, request_id: str) -> JSONResponse:
    """An error as an answer; what we did not foresee is logged and told without its insides."""
    if not isinstance(error, GtvrayError):
        LOGGER.error("event=unforeseen request=%s kind=%s", request_id, type(error).__name__, exc_info=error)
        error = FailureError("something went wrong in the server", do="give the operator this answer's instance")
    elif error.http_status >= 500:
        log_event("failed", request_id, logging.WARNING, kind=type(error).__name__)
    return JSONResponse(error.problem(request_id), error.http_status, problem_headers(error), MEDIA_TYPE)


def _request_id(headers: Headers) -> tuple[str, bool]:
    """The request's id, and whether it came with the request: Serve's proxy gives and echoes one."""
    given = headers.get("x-request-id", "")
    if _REQUEST_ID.fullmatch(given):
        return given, True
    return uuid.uuid4().hex, False
