"""Which settings shape the result of a training: an interrupted one resumes although others have changed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Where results are recorded and how they are judged and served, and what only bounds waits, retries and resources.
_OTHER_SECTIONS = ("tracking", "promotion", "serving", "cache")
_OTHER_KEYS = (
    "training.cpus_per_worker",
    "training.gpus_per_worker",
    "training.max_failures",
    "training.collective_timeout_s",
    "training.resources_wait_s",
)


def shaping(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that shape a result.

    Args:
        values: settings by dotted key.
    """
    return {
        key: value
        for key, value in values.items()
        if key.partition(".")[0] not in _OTHER_SECTIONS and key not in _OTHER_KEYS
    }
