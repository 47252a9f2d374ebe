"""Ports that nothing listens on, also for the dashboard of a simulated cluster."""

from __future__ import annotations

import socket
from typing import Any


def free_port() -> int:
    """A port nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def head_arguments() -> dict[str, Any]:
    """Arguments of a simulated head without CPUs.

    At Ray's own port of the dashboard, a second cluster on the machine would have none, and no list of its actors.
    """
    return {"num_cpus": 0, "dashboard_port": free_port()}
