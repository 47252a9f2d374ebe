"""Request headers that Ray Serve's HTTP proxy acts on before the application sees a request.

The proxy decodes the values of these headers as UTF-8 without a check, so that other bytes end in a bare status 500.
Two of them take a request out of the endpoint's limits.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator

from gtvray.errors import RequestError

RawHeaders = Iterable[tuple[bytes, bytes]]

# With the first, a request goes on after its client has gone, and keeps its slot; the second sets its time limit.
_REFUSED = frozenset({"x-request-disconnect-disabled", "x-request-timeout-seconds"})
# These choose a replica. All replicas are alike, so they are of no use here, and their values would be kept by Serve.
_DROPPED = frozenset(
    {
        "serve-multiplexed-model-id",
        os.environ.get("RAY_SERVE_SESSION_ID_HEADER_KEY", "x-session-id").lower().replace("_", "-"),
    }
)
_TRACING = frozenset({"traceparent", "tracestate"})


def check_steering(headers: RawHeaders) -> None:
    """Refuse headers that steer Serve, and those whose bytes it cannot decode.

    Raises:
        RequestError: names the header, never its value.
    """
    for name, value in headers:
        known = _name(name)
        if known in _REFUSED:
            raise RequestError(
                "a header of this request is not allowed here",
                found=known,
                do="leave it out: the server sets the time limit of a request, and ends it when its client is gone",
            )
        if known in _DROPPED and not value.isascii():
            raise RequestError("a header's value is not ASCII", found=known, do="leave it out")


def without_steering(headers: RawHeaders) -> Iterator[tuple[bytes, bytes]]:
    """The headers that Serve's proxy may see."""
    for name, value in headers:
        known = _name(name)
        if known not in _DROPPED and (known not in _TRACING or value.isascii()):
            yield name, value


def _name(name: bytes) -> str:
    """As Serve compares names: `-` and `_` are alike."""
    return name.decode("latin-1").lower().replace("_", "-")
