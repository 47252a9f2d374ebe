"""Waiting for a state that another thread or process reaches."""

from __future__ import annotations

import time
from collections.abc import Callable


def wait_until(reached: Callable[[], bool], limit_s: float = 30) -> None:
    """Return as soon as a state is reached; fail if it is not within the limit."""
    deadline = time.monotonic() + limit_s
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.05)
