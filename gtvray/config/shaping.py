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


def first_difference(before: Any, now: Any, key: str = "") -> tuple[str, Any, Any] | None:
    """Return the first difference of two values, within mappings by dotted key; None if they are equal.

    Args:
        before: the one value.
        now: the other.
        key: key of both.

    Returns:
        the key, and what each has there; None where it has none.
    """
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        prefix = f"{key}." if key else ""
        pairs = ((before.get(name), now.get(name), f"{prefix}{name}") for name in sorted({*before, *now}))
        return next((found for pair in pairs if (found := first_difference(*pair)) is not None), None)
    return None if before == now else (key, before, now)


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
