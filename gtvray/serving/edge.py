"""The ASGI layer in Ray Serve's HTTP proxies, before Serve reads a request and after it has answered.

Serve's proxy puts a client's request id into its answer and into every log line, acts on some headers of a client, and
answers in plain text where no replica can. None of this can be changed in a replica. Serve takes middlewares for its
proxies only by the environment variable RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH, which is read on every node that has
a proxy (`gtvray.runtime.PROXY_CALLBACK`).
"""

from __future__ import annotations

from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware import Middleware
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gtvray.errors import BusyError, DeadlineError, FailureError, GtvrayError, ResourceError
from gtvray.serving.problems import MEDIA_TYPE, http_problem, problem_response
from gtvray.serving.request_ids import REQUEST_ID_HEADER, request_id_of
from gtvray.serving.steering import check_steering, without_steering

# Says in a request's scope, which travels to the replica, that this layer has seen it. No client can set it.
EDGE = "gtvray.edge"


def middlewares() -> list[Middleware]:
    """What Serve's proxies put around themselves; called by Serve in each of them."""
    return [Middleware(Edge)]


class Edge:
    """Wraps Serve's proxy.

    Args:
        app: the proxy.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass one request on to Serve, or refuse it."""
        if scope["type"] not in ("http", "websocket"):
            return await self._app(scope, receive, send)
        request_id = request_id_of(Headers(scope=scope).getlist(REQUEST_ID_HEADER))
        answer = _Answer(scope, receive, send, request_id)
        gone = False

        async def receive_noting() -> Message:
            nonlocal gone
            message = await receive()
            gone = gone or message["type"] == "http.disconnect"
            return message

        try:
            check_steering(scope["headers"])
            await self._app(_passed_on(scope, request_id), receive_noting, answer.send)
        except Exception as error:
            if answer.started:
                raise
            await answer.problem(error)
        if scope["type"] == "http" and not answer.started and not gone:
            # Serve sends nothing where a replica was lost; its server would make a bare status 500 of it.
            await answer.problem(
                ResourceError("the request was lost in the server before it was answered", do="send it again")
            )
        return None


class _Answer:
    """What goes back to the client: with the request's id, and with a problem document for each error."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, request_id: str) -> None:
        self._scope, self._receive, self._send, self._request_id = scope, receive, send, request_id
        self.started = self._replaced = False

    async def send(self, message: Message) -> None:
        """Send a message of Serve's, or a problem document in place of its plain text."""
        if self._replaced:
            return
        if message["type"] == "http.response.start":
            content_type = Headers(raw=[*map(tuple, message.get("headers", []))]).get("content-type", "text/plain")
            if message["status"] >= 400 and content_type.startswith("text/plain"):
                self._replaced = True
                await self._respond(_serve_problem(message["status"], self._request_id))
                return
        await self._send_marked(message)

    async def problem(self, error: Exception) -> None:
        """Send an error."""
        await self._respond(problem_response(error, self._request_id))

    async def _respond(self, response: JSONResponse) -> None:
        await response(self._scope, self._receive, self._send_marked)

    async def _send_marked(self, message: Message) -> None:
        self.started = True
        if message["type"].endswith("http.response.start"):
            headers = [(bytes(name), bytes(value)) for name, value in message.get("headers", [])]
            message = {**message, "headers": headers}
            # One header, whatever Serve has added.
            MutableHeaders(raw=headers)[REQUEST_ID_HEADER] = self._request_id
        await self._send(message)


def _passed_on(scope: Scope, request_id: str) -> dict[str, Any]:
    header = REQUEST_ID_HEADER.lower().encode()
    headers = [(name, value) for name, value in without_steering(scope["headers"]) if name.lower() != header]
    extensions = {**scope.get("extensions", {}), EDGE: {}}
    return {**scope, "headers": [*headers, (header, request_id.encode())], "extensions": extensions}


def _serve_problem(status: int, request_id: str) -> JSONResponse:
    """What Serve itself says in plain text, which may hold a path, as a problem document."""
    error: GtvrayError | None = None
    if status == 408:
        error = DeadlineError("the answer was not ready in time")
    elif status in (429, 503):
        error = BusyError("the endpoint can take no requests now", do="try again in a few seconds")
    elif status >= 500:
        error = FailureError("something went wrong in the server", do="give the operator this answer's instance")
    if error is not None:
        return problem_response(error, request_id)
    return JSONResponse(http_problem(status, request_id), status, media_type=MEDIA_TYPE)
