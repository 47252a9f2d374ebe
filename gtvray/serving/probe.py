"""Unauthenticated probes of an endpoint on this machine."""

from __future__ import annotations

import httpx

from gtvray.config import ServingConfig

_TIMEOUT_S = 5.0


def endpoint_url(settings: ServingConfig) -> str:
    """The URL at which this machine reaches an endpoint with these settings."""
    scheme = "https" if settings.tls_certificate is not None else "http"
    host = settings.host
    reached = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104  # compared, not bound
    return f"{scheme}://[{reached}]:{settings.port}" if ":" in reached else f"{scheme}://{reached}:{settings.port}"


def probe(url: str, path: str) -> httpx.Response | None:
    """Return the response of a path that requires no token; None if the endpoint does not respond."""
    try:
        # The certificate names the address that clients use, not that of this machine; no token is sent.
        with httpx.Client(verify=False, trust_env=False, timeout=_TIMEOUT_S) as client:  # noqa: S501
            return client.get(f"{url}{path}")
    except httpx.TransportError:
        return None
