"""HTTP proxies configured in the environment, which are never used for connections to this machine.

`HTTP_PROXY`, `HTTPS_PROXY`, `ALL_PROXY` and `NO_PROXY` are read in lower and upper case, as in curl and requests.
"""

from __future__ import annotations

import ipaddress
import os
import socket
from collections.abc import Mapping
from urllib.parse import urlsplit
from urllib.request import getproxies_environment

_LOOPBACK = ("localhost", "127.0.0.1", "127.0.0.0/8", "::1")
_DEFAULT_PORTS = {"http": 80, "https": 443, "socks5": 1080, "socks5h": 1080, "socks4": 1080}
_VARIABLES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def proxy_for(url: str) -> str | None:
    """The proxy for requests to a URL, as scheme://[user:password@]host:port; None for a direct connection.

    Connections to this machine and to entries of NO_PROXY are direct. An entry is `*`, a host, a domain including its
    subdomains, an address or a network in CIDR notation, each with an optional port.
    """
    proxies = getproxies_environment()
    scheme, host, port = _parts(url)
    proxy = proxies.get(scheme) or proxies.get("all")
    if not proxy or not host or is_own_host(host):
        return None
    if any(_matches(host, port, entry.strip().lower()) for entry in proxies.get("no", "").split(",")):
        return None
    return proxy if "://" in proxy else f"http://{proxy}"


def proxy_endpoint(proxy: str) -> tuple[str, int]:
    """Host and port of a proxy."""
    _, host, port = _parts(proxy)
    return host, port


def without_credentials(proxy: str) -> str:
    """Remove user name and password from the URL of a proxy."""
    scheme, separator, rest = proxy.rpartition("://")
    return f"{scheme}{separator}{rest.rpartition('@')[2]}"


def is_own_host(host: str) -> bool:
    """Whether a host name or address refers to this machine; only this machine's own name is resolved."""
    name = host.strip("[]").partition("%")[0].rstrip(".").lower()
    address = _address(name)
    if address is None:
        return name == "localhost" or name.endswith(".localhost") or name == socket.gethostname().lower()
    address = getattr(address, "ipv4_mapped", None) or address
    return address.is_loopback or address.is_unspecified or _is_of_an_interface(address)


def bypass_proxies(*urls: str) -> None:
    """Make libraries that read the environment, such as requests, connect to this machine directly.

    Adds the loopback addresses, and the hosts of the URLs that refer to this machine, to NO_PROXY and no_proxy of this
    process and its children. Does nothing if no proxy is configured.
    """
    proxies = getproxies_environment()
    present = [entry.strip() for entry in proxies.pop("no", "").split(",") if entry.strip()]
    if not proxies or "*" in present:
        return
    hosts = [_parts(url)[1] for url in urls]
    wanted = [*_LOOPBACK, *(host for host in hosts if host and is_own_host(host))]
    value = ",".join(dict.fromkeys([*present, *wanted]))
    os.environ["NO_PROXY"] = os.environ["no_proxy"] = value


def proxy_settings(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The proxy variables set in the environment, by name, without credentials."""
    return {
        name: without_credentials(value)
        for name, value in sorted(environ.items())
        if name.lower() in _VARIABLES and value.strip()
    }


def _parts(url: str) -> tuple[str, str, int]:
    """Scheme, host and port of a URL; the host of an invalid URL is empty."""
    try:
        parts = urlsplit(url if "://" in url else f"http://{url}")
    except ValueError:
        return "", "", 0
    try:
        port = parts.port
    except ValueError:
        port = None
    return parts.scheme, parts.hostname or "", port or _DEFAULT_PORTS.get(parts.scheme, 80)


def _address(name: str) -> Address | None:
    try:
        return ipaddress.ip_address(name)
    except ValueError:
        pass
    try:
        # Short and hexadecimal forms such as 127.1, which the system accepts too.
        return ipaddress.IPv4Address(socket.inet_aton(name))
    except (OSError, ValueError):
        return None


def _is_of_an_interface(address: Address) -> bool:
    """Whether an interface has this address: a UDP socket connected to it has it as its source; nothing is sent."""
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((str(address), 9))
            return ipaddress.ip_address(probe.getsockname()[0]) == address
    except OSError:
        return False


def _matches(host: str, port: int, entry: str) -> bool:
    """Whether an entry of NO_PROXY matches a host."""
    if entry == "*":
        return True
    address = _address(host)
    name, separator, number = entry.rpartition(":")
    if separator and number.isdecimal() and (name.startswith("[") or ":" not in name):
        if int(number) != port:
            return False
        entry = name
    entry = entry.strip("[]")
    if address is not None:
        try:
            return address in ipaddress.ip_network(entry, strict=False)
        except ValueError:
            return False
    entry = entry.removeprefix("*").removeprefix(".")
    return bool(entry) and (host == entry or host.endswith(f".{entry}"))
