"""Settings that affect the result of a training; all others may change before it is resumed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Settings of tracking, promotion, serving and caching, and limits on waiting, retries and resources.
_OTHER_SECTIONS = ("tracking", "promotion", "serving", "cache")
_OTHER_KEYS = (
    "training.cpus_per_worker",
    "training.gpus_per_worker",
    "training.max_failures",
    "training.collective_timeout_s",
    "training.resources_wait_s",
)


def shaping(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that affect the result of a training.

    Args:
        values: settings by dotted key.
    """
    return {
        key: value
        for key, value in values.items()
        if key.partition(".")[0] not in _OTHER_SECTIONS and key not in _OTHER_KEYS
    }
