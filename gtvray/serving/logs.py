"""Log lines as key=value, each with the request's id. No file names, no headers, nothing about a patient."""

from __future__ import annotations

import logging

# Below Serve's own logger, so that lines reach the replica's log file.
LOGGER = logging.getLogger("ray.serve.gtvray")


def log_event(event: str, request_id: str, level: int = logging.INFO, **values: object) -> None:
    """One line about a request; values are numbers, fixed words or class names."""
    pairs = {"event": event, "request": request_id, **values}
    LOGGER.log(level, " ".join(f"{key}={value}" for key, value in pairs.items()))
