"""Errors as RFC 9457 problem documents, there and back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from http import HTTPStatus
from typing import Any

from gtvray.errors import BusyError, FailureError, GtvrayError, NotReadyError

MEDIA_TYPE = "application/problem+json"
_FIELDS = ("where", "expected", "found", "do")
_RETRY_AFTER_S = 5


def http_problem(status: int, instance: str) -> dict[str, object]:
    """The document of a plain HTTP error, such as an unknown route."""
    return {"type": "about:blank", "title": HTTPStatus(status).phrase, "status": status, "instance": instance}


def problem_headers(error: GtvrayError) -> dict[str, str]:
    """Headers that go with an error: how to authenticate, when to come again."""
    if error.http_status == HTTPStatus.UNAUTHORIZED:
        return {"WWW-Authenticate": 'Bearer realm="gtvray"'}
    if isinstance(error, BusyError | NotReadyError):
        return {"Retry-After": str(_RETRY_AFTER_S)}
    return {}


def error_of(problem: Mapping[str, Any], url: str) -> GtvrayError:
    """The error that a server's problem document tells of."""
    name = str(problem.get("type", "")).rpartition(":")[2]
    kind = next((kind for kind in _kinds(GtvrayError) if kind.__name__ == name), FailureError)
    fields = {key: problem[key] for key in _FIELDS if key in problem}
    return kind(str(problem.get("title")), **{"where": f"{url}, request {problem.get('instance')}", **fields})


def _kinds(kind: type[GtvrayError]) -> Iterator[type[GtvrayError]]:
    yield kind
    for below in kind.__subclasses__():
        yield from _kinds(below)
