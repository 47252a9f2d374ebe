"""Start of a local cluster whose agent, which takes submitted jobs, listens on a free port.

`ray.init` gives it the fixed port 52365, so of several clusters on a machine only the first would accept jobs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def free_agent_port() -> Iterator[None]:
    """Within a `with` block, start raylets whose agents choose a free port."""
    from ray._private import ray_constants, services

    fixed = f"--listen-port={ray_constants.DEFAULT_DASHBOARD_AGENT_LISTEN_PORT}"
    start = services.start_ray_process

    def start_free(command: list[str], process_type: str, *args: Any, **options: Any) -> Any:
        # The agent's command line is one argument of the raylet's.
        return start([word.replace(fixed, "--listen-port=0") for word in command], process_type, *args, **options)

    services.start_ray_process = start_free
    try:
        yield
    finally:
        services.start_ray_process = start
