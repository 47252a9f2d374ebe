"""Ports: known to be free before anything is started on them."""

from __future__ import annotations

import socket

from gtvray.errors import ResourceError


def port_is_free(host: str, port: int) -> bool:
    """Whether a server could listen here now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # As servers do: a port whose last connection is still closing counts as free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def require_port(host: str, port: int, setting: str) -> None:
    """Refuse a port that is taken.

    Args:
        host: address to listen on.
        port: port to listen on.
        setting: the config key or option that names it.

    Raises:
        ResourceError: something listens there already, or the address is not this machine's.
    """
    if not port_is_free(host, port):
        raise ResourceError(
            "port is in use",
            where=f"{host}:{port}",
            do=f"choose another with {setting}, or end what listens there",
        )
