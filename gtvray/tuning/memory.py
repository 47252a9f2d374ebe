"""Memory of the largest trial of a sweep; Ray reserves the same amount for every trial."""

from __future__ import annotations

from contextlib import suppress

from gtvray.config import Choice, Config, Range, with_dotted
from gtvray.errors import ConfigError
from gtvray.training import host_bytes


def largest_host_bytes(base: Config, space: dict[str, Range | Choice]) -> int:
    """Estimate the memory that the largest trial takes on its host.

    The estimate is monotonic in each setting it depends on, so the settings are maximised one at a time.

    Args:
        base: settings of the first trial.
        space: the search space.

    Raises:
        ConfigError: no network can be built from the base settings.
    """
    largest, most = base, host_bytes(base)
    for key, domain in space.items():
        for value in domain.corners():
            # Combinations that are invalid cannot become a trial.
            with suppress(ConfigError):
                changed = with_dotted(largest, {key: value})
                if (needed := host_bytes(changed)) > most:
                    largest, most = changed, needed
    return most
