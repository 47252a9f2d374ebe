"""The network interface that workers use to exchange gradients: the one that holds the address of their Ray node.

Gloo and NCCL otherwise choose one by the name of the host, which resolves to the loopback on Debian (127.0.1.1), or by
the order of the interfaces.
"""

from __future__ import annotations

import fcntl
import ipaddress
import os
import socket
import struct
from pathlib import Path

_SIOCGIFADDR = 0x8915
_IPV6_TABLE = Path("/proc/net/if_inet6")


def bind_to_interface(address: str) -> str | None:
    """Set the variables that bind Gloo and NCCL to the interface of an address, unless the user has set them.

    Args:
        address: IP address of this Ray node.

    Returns:
        the interface; None if no interface has the address, and nothing is set.
    """
    interface = interface_of(address)
    if interface is not None:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
        # Without "=" NCCL takes the name as a prefix.
        os.environ.setdefault("NCCL_SOCKET_IFNAME", f"={interface}")
    return interface


def interface_of(address: str) -> str | None:
    """Name of the network interface with an IP address; None if there is none."""
    wanted = ipaddress.ip_address(address)
    if wanted.version == 6:
        return _ipv6_interface(wanted)
    if wanted.is_loopback:
        # The loopback interface has the whole network 127.0.0.0/8, but reports one address.
        wanted = ipaddress.ip_address("127.0.0.1")
    return next((name for _, name in socket.if_nameindex() if _ipv4_address(name) == wanted), None)


def _ipv4_address(interface: str) -> ipaddress.IPv4Address | None:
    request = struct.pack("256s", os.fsencode(interface))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            answer = fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, request)
        except OSError:
            return None
    return ipaddress.IPv4Address(answer[20:24])


def _ipv6_interface(wanted: ipaddress.IPv6Address) -> str | None:
    try:
        rows = [line.split() for line in _IPV6_TABLE.read_text().splitlines()]
    except OSError:
        return None
    return next((row[-1] for row in rows if ipaddress.IPv6Address(bytes.fromhex(row[0])) == wanted), None)
