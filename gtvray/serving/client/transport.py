"""Transport of the HTTP client: proxies, timeouts by phase, and retries.

Requests to this machine bypass proxies, and a proxy's response is reported as such, not as the endpoint's.
"""

from __future__ import annotations

import random
import ssl
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from os import PathLike
from typing import TypeVar

import httpx
from pydantic import BaseModel, ValidationError

from gtvray.errors import (
    AuthError,
    DeadlineError,
    GtvrayError,
    InputError,
    NotFoundError,
    NotReproducedError,
    ResourceError,
)
from gtvray.runtime import proxy_for, without_credentials
from gtvray.serving.problems import MEDIA_TYPE, error_of

Document = TypeVar("Document", bound=BaseModel)

_PROXY_ADVICE = "name the endpoint's host in NO_PROXY, or correct HTTP_PROXY, HTTPS_PROXY or ALL_PROXY"
_HIGHEST_PORT = 65535
_REPEATED = frozenset(
    {
        HTTPStatus.TOO_MANY_REQUESTS,
        HTTPStatus.BAD_GATEWAY,
        HTTPStatus.SERVICE_UNAVAILABLE,
        HTTPStatus.GATEWAY_TIMEOUT,
    }
)


@dataclass(frozen=True)
class Timeouts:
    """Time limits of a request, by phase.

    Attributes:
        connect_s: establishing a connection.
        write_s: sending without progress.
        read_s: waiting for data from the server; must exceed the time to predict a mask.
        pool_s: waiting for a free connection.
    """

    connect_s: float = 10.0
    write_s: float = 60.0
    read_s: float = 330.0
    pool_s: float = 600.0


@dataclass(frozen=True)
class Retry:
    """Retry policy: a request is retried if it finds or keeps no connection, or gets status 429, 502, 503 or 504.

    Every request of the client can be repeated: a mask depends on the scan only, and a job has an idempotency key.
    Pauses grow exponentially, with a jitter of up to one half, so that the clients of a restarted server do not return
    all at once. A Retry-After header of the server lengthens a pause.

    The time limits count from the first failure in a row, not from the start of the request: a scan may take minutes
    before its connection breaks. An event stream that is open again ends a row of failures.

    Attributes:
        attempts: maximum number of attempts; 1 disables retries.
        first_s: upper limit of the first pause.
        longest_s: upper limit of every pause.
        total_s: time from the first failure after which no further attempt starts.
        first_contact_s: the same limit until the client has reached the server once, since the address may be wrong.
            A response and a connection that breaks after it was established both count as reached.
    """

    attempts: int = 8
    first_s: float = 0.5
    longest_s: float = 8.0
    total_s: float = 60.0
    first_contact_s: float = 6.0

    def pause_s(self, attempt: int, elapsed_s: float, after_s: float = 0.0, *, reached: bool = True) -> float | None:
        """Return the pause in seconds after a failed attempt; None if there is no further attempt.

        Args:
            attempt: number of the attempt that failed, from 1.
            elapsed_s: time since the first failure in a row.
            after_s: pause that the server requested.
            reached: whether the client has ever reached the server.
        """
        left = (self.total_s if reached else self.first_contact_s) - elapsed_s
        if attempt >= self.attempts or left <= 0 or after_s > left:
            return None
        longest = min(self.longest_s, self.first_s * 2 ** (attempt - 1))
        varied: float = longest * random.uniform(0.5, 1.0)  # noqa: S311  # no secret
        # The last attempt is as late as possible.
        return min(left, max(after_s, varied))


class Failures:
    """The failed attempts of one request in a row.

    Args:
        retry: retry policy.
    """

    def __init__(self, retry: Retry) -> None:
        self._retry = retry
        self.clear()

    def clear(self) -> None:
        """Forget the failures, as the server responds again."""
        self._count, self._first_at = 0, 0.0

    def next_pause_s(self, after_s: float = 0.0, *, reached: bool = True) -> float | None:
        """Count a failure; return the pause before the next attempt, or None if there is none.

        Args:
            after_s: pause that the server requested.
            reached: whether the client has ever reached the server.
        """
        now = time.monotonic()
        if not self._count:
            self._first_at = now
        self._count += 1
        return self._retry.pause_s(self._count, now - self._first_at, after_s, reached=reached)


def open_async_client(url: str, timeouts: Timeouts, ca_file: str | PathLike[str] | None = None) -> httpx.AsyncClient:
    """Open an asynchronous HTTP client for one endpoint; the caller closes it.

    Args:
        url: address of the endpoint.
        timeouts: time limits by phase.
        ca_file: PEM file of the certificate authorities that are trusted; None trusts the public ones.

    Raises:
        InputError: the environment sets a proxy that cannot be used, or `ca_file` has no certificate that can be read.
        NotFoundError: there is no such file.
    """
    trusted = None if ca_file is None else _trusting(ca_file, url)
    return httpx.AsyncClient(transport=_transport(url, trusted), timeout=as_httpx(timeouts))


def as_httpx(timeouts: Timeouts) -> httpx.Timeout:
    """Convert time limits to an `httpx.Timeout`."""
    return httpx.Timeout(connect=timeouts.connect_s, write=timeouts.write_s, read=timeouts.read_s, pool=timeouts.pool_s)


def require_address(url: str, timeouts: Timeouts) -> None:
    """Check the address of an endpoint.

    Raises:
        ResourceError: it is not a valid URL.
    """
    try:
        if (httpx.URL(url).port or 0) > _HIGHEST_PORT:
            raise httpx.InvalidURL(f"a port is at most {_HIGHEST_PORT}")
    except httpx.InvalidURL as error:
        raise transport_error(error, url, timeouts) from error


def require_token(token: str) -> None:
    """Check that a bearer token can be sent in a header.

    Raises:
        AuthError: the token is empty, or has characters that are not allowed in a header.
    """
    if token and token.isascii() and token.isprintable() and " " not in token:
        return
    raise AuthError(
        "the endpoint requires a bearer token",
        expected="printable ASCII characters without spaces",
        found="no token" if not token.strip() else "a token with other characters",
        do="set GTVRAY_TOKEN to the token that the endpoint's administrator gave you",
    )


def _trusting(ca_file: str | PathLike[str], url: str) -> ssl.SSLContext:
    """The TLS settings that trust only the certificate authorities of a file."""
    expected = "a PEM file of the certificate authority that has signed the endpoint's certificate"
    if not url.startswith("https://"):
        do = "use the https:// address of the endpoint, or omit the file"
        raise InputError("a CA file requires an endpoint with TLS", where=url, expected="https://", do=do)
    try:
        return ssl.create_default_context(cafile=ca_file)
    except FileNotFoundError as error:
        raise NotFoundError("no such CA file", where=ca_file, expected=expected) from error
    except ssl.SSLError as error:
        raise InputError("the CA file has no certificate", where=ca_file, expected=expected) from error
    except OSError as error:
        found = error.strerror
        raise InputError("the CA file cannot be read", where=ca_file, expected=expected, found=found) from error


def _transport(url: str, trusted: ssl.SSLContext | None) -> httpx.AsyncHTTPTransport:
    proxy = proxy_for(url)
    # Loading the trusted certificates takes 30 ms, which is wasted where TLS is not used.
    verify = trusted or not url.startswith("http://") or (proxy or "").startswith("https://")
    try:
        # An explicit transport keeps httpx from applying the environment's proxies under its own NO_PROXY rules.
        return httpx.AsyncHTTPTransport(verify=verify, proxy=proxy)
    except (ImportError, ValueError, httpx.InvalidURL) as error:
        raise InputError(
            "the proxy set in the environment cannot be used",
            where=without_credentials(proxy or ""),
            expected="http://host:port or https://host:port",
            do=_PROXY_ADVICE,
        ) from error


def is_repeatable(error: httpx.TransportError | httpx.InvalidURL) -> bool:
    """Whether a request without a response may succeed if it is sent again."""
    wrong = httpx.InvalidURL | httpx.UnsupportedProtocol | httpx.ProxyError | httpx.LocalProtocolError
    distrusted = isinstance(_reason(error), ssl.SSLCertVerificationError)
    return not (distrusted or isinstance(error, wrong | httpx.ReadTimeout | httpx.PoolTimeout))


def has_connected(error: httpx.TransportError | httpx.InvalidURL) -> bool:
    """Whether a connection was established before a request failed without a response."""
    unconnected = httpx.InvalidURL | httpx.UnsupportedProtocol | httpx.ProxyError | httpx.PoolTimeout
    return not isinstance(error, unconnected | httpx.ConnectError | httpx.ConnectTimeout)


def is_repeatable_status(response: httpx.Response, error: GtvrayError) -> bool:
    """Whether a request with this response may succeed if it is sent again."""
    return response.status_code in _REPEATED and not isinstance(error, NotReproducedError)


def retry_after_s(response: httpx.Response) -> float:
    """Seconds that a server asks a client to wait, from Retry-After; 0 without a valid one."""
    value = response.headers.get("retry-after", "")
    if value.isdecimal():
        return float(value)
    try:
        until = parsedate_to_datetime(value)
    except ValueError:
        return 0.0
    return max(0.0, (until.replace(tzinfo=until.tzinfo or UTC) - datetime.now(UTC)).total_seconds())


def parse_document(kind: type[Document], response: httpx.Response, url: str) -> Document:
    """Parse the JSON of a response; raises as `response_error` states if it is another document."""
    try:
        return kind.model_validate_json(response.content)
    except ValidationError:
        raise response_error(response, url) from None


def response_error(response: httpx.Response, url: str) -> GtvrayError:
    """Return the error of an unsuccessful response: as reported by the endpoint, or that another server responded."""
    if response.headers.get("content-type", "").startswith(MEDIA_TYPE):
        try:
            return error_of(response.json(), url)
        except (ValueError, AttributeError, TypeError):
            pass
    try:
        found = f"HTTP {response.status_code} {HTTPStatus(response.status_code).phrase}"
    except ValueError:
        found = f"HTTP {response.status_code}"
    proxy = proxy_for(url)
    if proxy:
        return ResourceError(
            "the response came from the proxy, not from the endpoint",
            where=without_credentials(proxy),
            expected=f"a response of {url}",
            found=found,
            do=_PROXY_ADVICE,
        )
    if _is_from_a_proxy(response):
        return ResourceError(
            "the response came from an intermediate proxy, not from the endpoint",
            where=url,
            found=f"{found}, {response.headers.get('via') or response.headers.get('server') or 'an HTML page'}",
            do="contact the proxy's operator, or use the endpoint's own address",
        )
    return ResourceError("the response is not from a gtvray server", where=url, found=found, do="correct the address")


def transport_error(error: httpx.TransportError | httpx.InvalidURL, url: str, timeouts: Timeouts) -> GtvrayError:
    """The error of a request without a response."""
    reason = _reason(error)
    if isinstance(reason, ssl.SSLCertVerificationError):
        return ResourceError(
            "the certificate of the endpoint is not trusted",
            where=url,
            found=reason.verify_message,
            do="check the address; if a private authority signed the certificate, name its PEM file (--ca-file, or "
            "ca_file in Python)",
        )
    proxy = proxy_for(url) if not isinstance(error, httpx.InvalidURL) else None
    shown = without_credentials(proxy or "")
    if isinstance(error, httpx.TimeoutException):
        through = f", through the proxy {shown}" if proxy else ""
        return DeadlineError(
            "the server did not respond in time",
            where=f"{url}{through}",
            expected=_limit(error, timeouts),
            found=type(error).__name__,
            do="check that the server is running and reachable, then retry",
        )
    if proxy:
        refused = isinstance(error, httpx.ProxyError)
        return ResourceError(
            "the proxy refused the request to the endpoint"
            if refused
            else "the proxy to the endpoint does not respond",
            where=shown,
            expected=url,
            found=reason,
            do=_PROXY_ADVICE,
        )
    do = "start a server with `gtvray serve`, or correct the address"
    return ResourceError("no server responds at this address", where=url, found=reason, do=do)


def _reason(error: BaseException) -> BaseException:
    """Return the operating system error behind an error of the HTTP library, as its text is more specific."""
    found: BaseException | None = error
    while found is not None:
        if isinstance(found, OSError) and found.errno is not None:
            return found
        found = found.__cause__ or found.__context__
    return error


def _limit(error: httpx.TimeoutException, timeouts: Timeouts) -> str:
    phases = {
        httpx.ConnectTimeout: ("a connection", timeouts.connect_s),
        httpx.WriteTimeout: ("progress of the upload", timeouts.write_s),
        httpx.PoolTimeout: ("a free connection", timeouts.pool_s),
    }
    what, limit_s = phases.get(type(error), ("data from the server", timeouts.read_s))
    return f"{what} within {limit_s:g} s"


def _is_from_a_proxy(response: httpx.Response) -> bool:
    return (
        response.status_code == HTTPStatus.PROXY_AUTHENTICATION_REQUIRED
        or "via" in response.headers
        or any(name.startswith("proxy-") for name in response.headers)
        or response.headers.get("content-type", "").startswith("text/html")
    )
