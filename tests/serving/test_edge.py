"""The middleware in Serve's proxies, run in this process around Serve's own middleware and responses."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from ray.serve._private.http_util import _apply_middlewares, convert_object_to_asgi_messages
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gtvray.errors import BusyError
from gtvray.runtime import PROXY_CALLBACK
from gtvray.serving.edge import EDGE, Edge, middlewares
from gtvray.serving.problems import problem_response

HEX = re.compile(r"[0-9a-f]{32}")

REQUEST_UUID = "539b6490-bbed-4bdc-966b-87e988722520"


class RecordingApp:
    """The application behind the middleware: records each scope and responds as configured, like Serve's proxy."""

    def __init__(
        self, respond: Callable[[], list[Any]] = lambda: convert_object_to_asgi_messages({"ok": True})
    ) -> None:
        self._respond = respond
        self.scopes: list[Scope] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Respond to one request."""
        self.scopes.append(scope)
        for message in self._respond():
            await send(message)

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        """Headers of the only request."""
        (scope,) = self.scopes
        return [(bytes(name), bytes(value)) for name, value in scope["headers"]]


def get(app: ASGIApp, headers: list[tuple[bytes, bytes]] | None = None, path: str = "/readyz") -> httpx.Response:
    async def call() -> httpx.Response:
        transport = httpx.ASGITransport(app=_apply_middlewares(app, list(middlewares())))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.get(path, headers=headers)

    return asyncio.run(call())


def problem_of(response: httpx.Response, status: int, kind: str) -> dict[str, Any]:
    """The problem document of a response, checked for status, type, and the same request id in header and body."""
    assert response.status_code == status
    assert response.headers["content-type"] == "application/problem+json"
    problem: dict[str, Any] = response.json()
    assert (problem["type"], problem["status"]) == (kind, status)
    assert response.headers.get_list("X-Request-ID") == [problem["instance"]]
    return problem


def test_serve_loads_the_middleware_by_its_import_path() -> None:
    from ray.serve._private.http_util import validate_http_proxy_callback_return
    from ray.serve._private.utils import call_function_from_import_path

    found = validate_http_proxy_callback_return(call_function_from_import_path(PROXY_CALLBACK[1]))
    assert [one.cls for one in found] == [one.cls for one in middlewares()]


@pytest.mark.parametrize(
    "given",
    [
        [b"Doe, John"],
        [b"12345678"],
        [b"visit-1"],
        [b"MRN-0123456789abcdef0123456789abcdef"],
        [b"01234567890123456789012345678901"],
        [b"12345678-1234-1234-1234-123456789012"],
        [b"Doe\xe9"],
        [b""],
        [REQUEST_UUID.replace("-", "").encode(), b"Doe, John"],
    ],
)
def test_invalid_request_id_is_replaced_and_not_forwarded(given: list[bytes]) -> None:
    serve = RecordingApp()
    response = get(serve, [(b"X-Request-ID", value) for value in given])
    (assigned,) = response.headers.get_list("X-Request-ID")
    assert HEX.fullmatch(assigned)
    assert [value for name, value in serve.headers if name == b"x-request-id"] == [assigned.encode()]
    assert assigned.encode() not in given


@pytest.mark.parametrize("given", [REQUEST_UUID, REQUEST_UUID.replace("-", ""), REQUEST_UUID.replace("-", "").upper()])
def test_valid_request_id_is_kept_and_returned_once(given: str) -> None:
    serve = RecordingApp()
    response = get(serve, [(b"X-Request-ID", given.encode())])
    assert response.headers.get_list("X-Request-ID") == [given]
    assert (b"x-request-id", given.encode()) in serve.headers


@pytest.mark.parametrize(
    "name", ["X-Request-Disconnect-Disabled", "x-request-timeout-seconds", "x_request_timeout_seconds"]
)
@pytest.mark.parametrize("value", [b"?1", b"0", b"\xe9", b""])
def test_headers_that_control_serve_are_rejected_before_serve_receives_them(name: str, value: bytes) -> None:
    serve = RecordingApp()
    problem = problem_of(get(serve, [(name.encode(), value)]), 400, "urn:gtvray:RequestError")
    assert problem["found"] == name.lower().replace("_", "-")
    assert serve.scopes == []


@pytest.mark.parametrize(
    "name", ["x-session-id", "X_Session_ID", "serve_multiplexed_model_id", "Serve-Multiplexed-Model-Id"]
)
def test_headers_that_select_a_replica_are_not_forwarded(name: str) -> None:
    serve = RecordingApp()
    assert get(serve, [(name.encode(), b"Doe")]).status_code == 200
    assert not any(b"Doe" in value for _, value in serve.headers)
    problem = problem_of(get(RecordingApp(), [(name.encode(), b"D\xf6")]), 400, "urn:gtvray:RequestError")
    assert problem["title"] == "a header's value is not ASCII"


def test_headers_that_serve_cannot_decode_are_not_forwarded() -> None:
    serve = RecordingApp()
    get(serve, [(b"traceparent", b"\xe9"), (b"tracestate", b"\xe9"), (b"User-Agent", b"\xe9"), (b"x-other", b"\xff")])
    seen = dict(serve.headers)
    assert b"traceparent" not in seen
    assert b"tracestate" not in seen
    assert seen[b"x-other"] == b"\xff", "Serve does not decode it"


def test_scope_is_marked_for_the_application() -> None:
    serve = RecordingApp()
    get(serve)
    assert EDGE in serve.scopes[0]["extensions"]


@pytest.mark.parametrize(
    ("status", "text", "expected", "kind"),
    [
        (404, "Path '/Doe' not found. Ping http://.../-/routes for available routes.", 404, "about:blank"),
        (408, "Request 1 timed out after 0.1s.", 504, "urn:gtvray:DeadlineError"),
        (429, "Request dropped due to backpressure", 503, "urn:gtvray:BusyError"),
        (503, "Deployment Api is unavailable: /secret/path", 503, "urn:gtvray:BusyError"),
        (500, "Traceback: /secret/path", 500, "urn:gtvray:FailureError"),
        (400, "no", 400, "about:blank"),
    ],
)
def test_plain_text_error_of_serve_becomes_a_problem(status: int, text: str, expected: int, kind: str) -> None:
    response = get(RecordingApp(lambda: convert_object_to_asgi_messages(text, status_code=status)))
    problem_of(response, expected, kind)
    assert text[:8] not in response.text
    assert ("Retry-After" in response.headers) == (kind == "urn:gtvray:BusyError")


def test_missing_response_becomes_a_problem() -> None:
    problem = problem_of(get(RecordingApp(list)), 503, "urn:gtvray:ResourceError")
    assert problem["do"] == "send it again"


def test_disconnected_client_is_sent_nothing() -> None:
    sent: list[Message] = []

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    async def receive() -> Message:
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "GET", "path": "/readyz", "headers": []}
    asyncio.run(Edge(serve)(scope, receive, send))
    assert sent == []


def test_exception_in_serve_becomes_a_problem_without_its_text() -> None:
    def fail() -> list[Any]:
        raise RuntimeError("/secret/path")

    response = get(RecordingApp(fail))
    problem_of(response, 500, "urn:gtvray:FailureError")
    assert "secret" not in response.text


def test_interrupted_response_is_not_completed() -> None:
    start, _ = convert_object_to_asgi_messages(b"partial")

    async def broken(scope: Scope, receive: Receive, send: Send) -> None:
        await send(start)
        raise RuntimeError("interrupted")

    with pytest.raises(RuntimeError, match="interrupted"):
        get(broken)


def test_problem_documents_and_responses_of_other_applications_are_unchanged() -> None:
    problem = problem_response(BusyError("full", do="retry later"), "other")

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await problem(scope, receive, send)

    response = get(app)
    assert response.json()["title"] == "full"
    assert response.headers["Retry-After"]
    other = get(RecordingApp(lambda: convert_object_to_asgi_messages({"detail": "x"}, status_code=422)))
    assert other.json() == {"detail": "x"}, "response of another application behind the same proxies"
    assert get(RecordingApp(lambda: convert_object_to_asgi_messages("success")), path="/-/healthz").text == "success"
