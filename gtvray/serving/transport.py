"""HTTP to an endpoint: without a proxy on this machine, and with a proxy's answers told from the endpoint's."""

from __future__ import annotations

from http import HTTPStatus

import httpx

from gtvray.errors import DeadlineError, GtvrayError, InputError, ResourceError
from gtvray.runtime import proxy_for, without_credentials
from gtvray.serving.problems import MEDIA_TYPE, error_of

_DO_PROXY = "name the endpoint's host in NO_PROXY, or correct HTTP_PROXY, HTTPS_PROXY or ALL_PROXY"


def open_client(url: str, timeout_s: float) -> httpx.Client:
    """A client for one endpoint; to be closed.

    Raises:
        InputError: the environment names a proxy that cannot be used.
    """
    proxy = proxy_for(url)
    # Loading the trusted certificates takes 30 ms, for nothing where there is no TLS.
    verify = not url.startswith("http://") or (proxy or "").startswith("https://")
    try:
        # A transport of its own keeps httpx from reading the proxies, whose rules for NO_PROXY are others.
        transport = httpx.HTTPTransport(verify=verify, proxy=proxy)
    except (ImportError, ValueError, httpx.InvalidURL) as error:
        raise InputError(
            "the proxy of the environment cannot be used",
            where=without_credentials(proxy or ""),
            expected="http://host:port or https://host:port",
            do=_DO_PROXY,
        ) from error
    return httpx.Client(transport=transport, timeout=timeout_s)


def no_answer(error: Exception, url: str, timeout_s: float) -> GtvrayError:
    """The error where a request got no answer.

    Args:
        error: an `httpx.TransportError` or `httpx.InvalidURL`.
        url: of the endpoint.
        timeout_s: longest silence of the server.
    """
    proxy = proxy_for(url) if not isinstance(error, httpx.InvalidURL) else None
    shown = without_credentials(proxy or "")
    if isinstance(error, httpx.TimeoutException):
        through = f", through the proxy {shown}" if proxy else ""
        return DeadlineError("the server took too long", where=f"{url}{through}", expected=f"{timeout_s:g} s")
    if isinstance(error, httpx.ProxyError):
        return ResourceError(
            "the proxy refused the request to the endpoint", where=shown, expected=url, found=error, do=_DO_PROXY
        )
    if proxy:
        return ResourceError(
            "the proxy on the way to the endpoint does not answer", where=shown, expected=url, found=error, do=_DO_PROXY
        )
    do = "start one with `gtvray serve`, or correct the address"
    return ResourceError("no server answers here", where=url, found=error, do=do)


def error_in(answer: httpx.Response, url: str) -> GtvrayError:
    """The error of an answer that is no mask: the endpoint's own, or that something else has answered."""
    if answer.headers.get("content-type", "").startswith(MEDIA_TYPE):
        try:
            return error_of(answer.json(), url)
        except (ValueError, AttributeError, TypeError):
            pass
    try:
        found = f"HTTP {answer.status_code} {HTTPStatus(answer.status_code).phrase}"
    except ValueError:
        found = f"HTTP {answer.status_code}"
    proxy = proxy_for(url)
    if proxy:
        return ResourceError(
            "the proxy answered, not the endpoint",
            where=without_credentials(proxy),
            expected=f"an answer of {url}",
            found=found,
            do=_DO_PROXY,
        )
    if _is_of_a_proxy(answer):
        return ResourceError(
            "a proxy before the endpoint answered, not the endpoint",
            where=url,
            found=f"{found}, {answer.headers.get('via') or answer.headers.get('server') or 'an HTML page'}",
            do="ask who runs that proxy, or use the endpoint's own address",
        )
    return ResourceError("not an answer of a gtvray server", where=url, found=found, do="correct the address")


def _is_of_a_proxy(answer: httpx.Response) -> bool:
    return (
        answer.status_code == HTTPStatus.PROXY_AUTHENTICATION_REQUIRED
        or "via" in answer.headers
        or any(name.startswith("proxy-") for name in answer.headers)
        or answer.headers.get("content-type", "").startswith("text/html")
    )
