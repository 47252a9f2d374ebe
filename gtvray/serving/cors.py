"""Which pages of other origins may call the endpoint from a browser (CORS): those of a list, by default none.

Standard: https://fetch.spec.whatwg.org/#http-cors-protocol
"""

from __future__ import annotations

from collections.abc import Sequence

from starlette.datastructures import Headers, MutableHeaders

_REQUEST_HEADERS = "Authorization, Content-Type, X-Request-ID"
_EXPOSED = (
    "X-Request-ID, Retry-After, WWW-Authenticate, X-Gtvray-Model-Digest, X-Gtvray-Model-Version, X-Gtvray-Volume-Ml, "
    "X-Gtvray-Mode, X-Gtvray-Fallback, X-Gtvray-Patches, X-Gtvray-Patches-Skipped, X-Gtvray-Volume-Skipped-Share, "
    "X-Gtvray-Out-Of-Domain, X-Gtvray-Milliseconds, X-Gtvray-Notice"
)
_PREFLIGHT_AGE_S = 600


def add_cors_headers(answer: MutableHeaders, request: Headers, origins: Sequence[str]) -> None:
    """Let the page that sent a request read its answer, if its origin is one of `origins`.

    Args:
        answer: headers of the answer; of an answer to OPTIONS with `Allow`, which names the methods.
        request: headers of the request.
        origins: those that may call, as scheme://host[:port].
    """
    if not origins:
        return
    answer.add_vary_header("Origin")
    origin = request.get("origin")
    if origin is None or origin not in origins:
        return
    answer["Access-Control-Allow-Origin"] = origin
    if "access-control-request-method" in request and "allow" in answer:
        answer["Access-Control-Allow-Methods"] = answer["allow"]
        answer["Access-Control-Allow-Headers"] = _REQUEST_HEADERS
        answer["Access-Control-Max-Age"] = str(_PREFLIGHT_AGE_S)
    else:
        answer["Access-Control-Expose-Headers"] = _EXPOSED
