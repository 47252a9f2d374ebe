"""The layer in Serve's proxies, around Serve's own middleware and answers, in this process."""

from __future__ import annotations

import asyncio
import re
import uuid
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


class Serve:
    """What stands behind the layer: records what it is shown and answers as it is told, as Serve's proxy does."""

    def __init__(self, answer: Callable[[], list[Any]] = lambda: convert_object_to_asgi_messages({"ok": True})) -> None:
        self._answer = answer
        self.scopes: list[Scope] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        self.scopes.append(scope)
        for message in self._answer():
            await send(message)

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        """Those of the one request it saw."""
        (scope,) = self.scopes
        return [(bytes(name), bytes(value)) for name, value in scope["headers"]]


def ask(app: ASGIApp, headers: list[tuple[bytes, bytes]] | None = None, path: str = "/readyz") -> httpx.Response:
    async def call() -> httpx.Response:
        transport = httpx.ASGITransport(app=_apply_middlewares(app, list(middlewares())))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.get(path, headers=headers)

    return asyncio.run(call())


def problem_of(answer: httpx.Response, status: int, kind: str) -> dict[str, Any]:
    """The problem document of an answer, with the request's id once in the headers and once in the document."""
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    problem: dict[str, Any] = answer.json()
    assert (problem["type"], problem["status"]) == (kind, status)
    assert answer.headers.get_list("X-Request-ID") == [problem["instance"]]
    return problem


def test_serve_finds_the_layer_by_its_import_path() -> None:
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
        [uuid.uuid4().hex.encode(), b"Doe, John"],
    ],
)
def test_a_foreign_request_id_goes_nowhere(given: list[bytes]) -> None:
    serve = Serve()
    answer = ask(serve, [(b"X-Request-ID", value) for value in given])
    (made,) = answer.headers.get_list("X-Request-ID")
    assert HEX.fullmatch(made)
    assert [value for name, value in serve.headers if name == b"x-request-id"] == [made.encode()]
    assert made.encode() not in given


@pytest.mark.parametrize("given", [str(uuid.uuid4()), uuid.uuid4().hex, uuid.uuid4().hex.upper()])
def test_a_random_request_id_is_kept_and_comes_back_once(given: str) -> None:
    serve = Serve()
    answer = ask(serve, [(b"X-Request-ID", given.encode())])
    assert answer.headers.get_list("X-Request-ID") == [given]
    assert (b"x-request-id", given.encode()) in serve.headers


@pytest.mark.parametrize(
    "name", ["X-Request-Disconnect-Disabled", "x-request-timeout-seconds", "x_request_timeout_seconds"]
)
@pytest.mark.parametrize("value", [b"?1", b"0", b"\xe9", b""])
def test_headers_that_steer_serve_are_refused_by_name_before_serve_sees_them(name: str, value: bytes) -> None:
    serve = Serve()
    problem = problem_of(ask(serve, [(name.encode(), value)]), 400, "urn:gtvray:RequestError")
    assert problem["found"] == name.lower().replace("_", "-")
    assert serve.scopes == []


@pytest.mark.parametrize(
    "name", ["x-session-id", "X_Session_ID", "serve_multiplexed_model_id", "Serve-Multiplexed-Model-Id"]
)
def test_headers_that_choose_a_replica_do_not_reach_serve(name: str) -> None:
    serve = Serve()
    assert ask(serve, [(name.encode(), b"Doe")]).status_code == 200
    assert not any(b"Doe" in value for _, value in serve.headers)
    problem = problem_of(ask(Serve(), [(name.encode(), b"D\xf6")]), 400, "urn:gtvray:RequestError")
    assert problem["title"] == "a header's value is not ASCII"


def test_serve_can_decode_all_that_it_decodes() -> None:
    serve = Serve()
    ask(serve, [(b"traceparent", b"\xe9"), (b"tracestate", b"\xe9"), (b"User-Agent", b"\xe9"), (b"x-other", b"\xff")])
    seen = dict(serve.headers)
    assert b"traceparent" not in seen
    assert b"tracestate" not in seen
    assert seen[b"x-other"] == b"\xff", "Serve does not read it"


def test_the_application_learns_that_the_layer_is_there() -> None:
    serve = Serve()
    ask(serve)
    assert EDGE in serve.scopes[0]["extensions"]


@pytest.mark.parametrize(
    ("status", "said", "to", "kind"),
    [
        (404, "Path '/Doe' not found. Ping http://.../-/routes for available routes.", 404, "about:blank"),
        (408, "Request 1 timed out after 0.1s.", 504, "urn:gtvray:DeadlineError"),
        (429, "Request dropped due to backpressure", 503, "urn:gtvray:BusyError"),
        (503, "Deployment Api is unavailable: /secret/path", 503, "urn:gtvray:BusyError"),
        (500, "Traceback: /secret/path", 500, "urn:gtvray:FailureError"),
        (400, "no", 400, "about:blank"),
    ],
)
def test_what_serve_says_in_plain_text_becomes_a_problem(status: int, said: str, to: int, kind: str) -> None:
    answer = ask(Serve(lambda: convert_object_to_asgi_messages(said, status_code=status)))
    problem_of(answer, to, kind)
    assert said[:8] not in answer.text
    assert ("Retry-After" in answer.headers) == (kind == "urn:gtvray:BusyError")


def test_no_answer_at_all_becomes_a_problem() -> None:
    problem = problem_of(ask(Serve(list)), 503, "urn:gtvray:ResourceError")
    assert problem["do"] == "send it again"


def test_a_client_that_has_gone_is_sent_nothing() -> None:
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


def test_an_error_in_serve_becomes_a_problem_without_its_text() -> None:
    def fail() -> list[Any]:
        raise RuntimeError("/secret/path")

    answer = ask(Serve(fail))
    problem_of(answer, 500, "urn:gtvray:FailureError")
    assert "secret" not in answer.text


def test_an_answer_that_breaks_off_is_not_made_whole() -> None:
    start, _ = convert_object_to_asgi_messages(b"half")

    async def broken(scope: Scope, receive: Receive, send: Send) -> None:
        await send(start)
        raise RuntimeError("broken off")

    with pytest.raises(RuntimeError, match="broken off"):
        ask(broken)


def test_problems_of_the_application_and_other_answers_pass_as_they_are() -> None:
    response = problem_response(BusyError("full", do="try later"), "other")

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await response(scope, receive, send)

    answer = ask(app)
    assert answer.json()["title"] == "full"
    assert answer.headers["Retry-After"]
    foreign = ask(Serve(lambda: convert_object_to_asgi_messages({"detail": "x"}, status_code=422)))
    assert foreign.json() == {"detail": "x"}, "another application's answer on the same proxies"
    assert ask(Serve(lambda: convert_object_to_asgi_messages("success")), path="/-/healthz").text == "success"
