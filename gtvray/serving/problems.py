"""Conversion between errors and RFC 9457 problem documents, for the server and the client."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from http import HTTPStatus
from typing import Any

from pydantic import BaseModel, Field
from starlette.responses import JSONResponse

from gtvray.errors import (
    FailureError,
    GtvrayError,
    InputError,
    NotFoundError,
    NotReproducedError,
    SlowBodyError,
)
from gtvray.serving.request_log import log_event

MEDIA_TYPE = "application/problem+json"
_FIELDS = ("where", "expected", "found", "do")
_RETRY_AFTER_S = 5


class Problem(BaseModel):
    """An error, RFC 9457."""

    type: str = Field(description="`urn:gtvray:` and the class in gtvray/errors.py, or `about:blank`")
    title: str = Field(description="what is wrong")
    status: int = Field(description="HTTP status")
    where: str | None = Field(None, description="the affected part of the request")
    expected: str | None = Field(None, description="valid value or state")
    found: str | None = Field(None, description="actual value or state")
    do: str | None = Field(None, description="how to solve the problem")
    instance: str = Field(description="id of the request in the server's log")


def http_problem(status: int, instance: str) -> dict[str, object]:
    """The document of an HTTP error that no exception class describes, such as an unknown route."""
    return {"type": "about:blank", "title": HTTPStatus(status).phrase, "status": status, "instance": instance}


def internal_error() -> FailureError:
    """The error reported to a client instead of an unexpected exception."""
    return FailureError("internal server error", do="report the instance of this response to the server's operator")


def problem_response(error: Exception, request_id: str) -> JSONResponse:
    """The response for an error; an unexpected exception is logged, and its text is not sent."""
    if not isinstance(error, GtvrayError):
        log_event("unexpected_error", request_id, logging.ERROR, trace=error, kind=type(error).__name__)
        error = internal_error()
    elif error.http_status >= 500:
        log_event("failed", request_id, logging.WARNING, kind=type(error).__name__)
    return JSONResponse(error.problem(request_id), error.http_status, problem_headers(error), MEDIA_TYPE)


def problem_headers(error: GtvrayError) -> dict[str, str]:
    """Response headers that an error requires: how to authenticate, or when to retry."""
    if error.http_status == HTTPStatus.UNAUTHORIZED:
        return {"WWW-Authenticate": 'Bearer realm="gtvray"'}
    if isinstance(error, SlowBodyError):
        # Otherwise the server would read the rest of the body at the client's slow rate, only to discard it.
        return {"Connection": "close"}
    # A model that does not reproduce its golden cases stays unavailable until an operator intervenes.
    may_pass = not isinstance(error, NotReproducedError)
    if may_pass and error.http_status in (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE):
        return {"Retry-After": str(_RETRY_AFTER_S)}
    return {}


def error_of(problem: Mapping[str, Any], url: str) -> GtvrayError:
    """The error that a server's problem document describes; the status decides the class if the type names none."""
    name = str(problem.get("type", "")).rpartition(":")[2]
    kind = next((kind for kind in _error_classes(GtvrayError) if kind.__name__ == name), None)
    if kind is None:
        status = problem.get("status")
        kind = NotFoundError if status == HTTPStatus.NOT_FOUND else FailureError
        if isinstance(status, int) and status < HTTPStatus.INTERNAL_SERVER_ERROR and kind is FailureError:
            kind = InputError
    fields = {key: problem[key] for key in _FIELDS if key in problem}
    return kind(str(problem.get("title")), **{"where": f"{url}, request {problem.get('instance')}", **fields})


def _error_classes(kind: type[GtvrayError]) -> Iterator[type[GtvrayError]]:
    yield kind
    for subclass in kind.__subclasses__():
        yield from _error_classes(subclass)
