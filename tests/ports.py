"""Free ports, also for the dashboard of a simulated cluster."""

from __future__ import annotations

import socket
from typing import Any


def free_port() -> int:
    """Return a port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def head_arguments() -> dict[str, Any]:
    """Arguments of a simulated head without CPUs.

    With Ray's default port, a second cluster on the machine would have no dashboard, and could not list its actors.
    """
    return {"num_cpus": 0, "dashboard_port": free_port()}
