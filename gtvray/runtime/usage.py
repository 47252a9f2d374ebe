"""Start of Ray's dashboard without the usage module, which makes requests even if usage reports are disabled.

With RAY_USAGE_STATS_ENABLED=0 the module still queries the cloud metadata services at 169.254.169.254 and
metadata.google.internal, and on a head node started by `ray start` it sends one report that it is disabled.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

# Run instead of the dashboard's script, whose path and arguments follow.
_DASHBOARD = """
import runpy, sys
from ray.dashboard.modules.usage_stats.usage_stats_head import UsageStatsHead
UsageStatsHead.is_enabled = staticmethod(lambda: False)
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@contextmanager
def without_usage_module() -> Iterator[None]:
    """Start dashboards without the usage module within a `with` block, unless RAY_USAGE_STATS_ENABLED=1."""
    if os.environ.get("RAY_USAGE_STATS_ENABLED") == "1":
        yield
        return
    from ray._private import services

    start = services.start_ray_process

    def start_without(command: list[str], process_type: str, *args: Any, **options: Any) -> Any:
        return start(_without(command), process_type, *args, **options)

    services.start_ray_process = start_without
    try:
        yield
    finally:
        services.start_ray_process = start


def _without(command: list[str]) -> list[str]:
    script = os.path.join("dashboard", "dashboard.py")
    at = next((number for number, word in enumerate(command) if word.endswith(script)), None)
    return command if at is None else [*command[:at], "-c", _DASHBOARD, *command[at:]]
