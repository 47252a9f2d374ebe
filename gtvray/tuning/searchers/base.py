"""The protocol of searchers, and functions that read values from the record of a trial."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from gtvray.tracking.trials import Origin, Trial
from gtvray.tuning.space import Point

# Metric by which trials are compared, as named in the report of an epoch.
METRIC = "selection_dsc"


@dataclass(frozen=True)
class Proposal:
    """A point to try, and where it comes from."""

    point: Point
    origin: Origin


class WaitForTrial(Exception):  # noqa: N818  # not an error
    """There is no point to propose until a running trial has ended."""


class Searcher(Protocol):
    """Protocol of searchers, which propose points from the seed and the earlier trials alone.

    A sweep that is resumed from its record therefore continues as if it had not been interrupted.
    """

    def propose(self, trials: Sequence[Trial]) -> Proposal | None:
        """Return the next point; None if the space has no further one.

        Args:
            trials: all earlier trials in order, including those still running.

        Raises:
            WaitForTrial: the next point depends on a trial that is running.
        """


class NoSearcher:
    """Propose nothing, for sweeps that only continue their trials."""

    def propose(self, trials: Sequence[Trial]) -> Proposal | None:
        """Return None."""
        return None


def value_of(trial: Trial) -> float | None:
    """Return the value of a trial, which is that of its best epoch; None without an epoch.

    Searchers, schedulers and the ranking all use it, since the checkpoint of that epoch is kept.
    """
    return max((value for _, value in trial.curve(METRIC)), default=None)


def best_so_far(trial: Trial) -> list[tuple[int, float]]:
    """Return the value of a trial after each epoch."""
    best, found = float("-inf"), []
    for epoch, value in trial.curve(METRIC):
        best = max(best, value)
        found.append((epoch, best))
    return found


def values_of(trial: Trial, objectives: Sequence[str]) -> list[float] | None:
    """Return the value of a trial for each objective; None without an epoch.

    Latency and memory do not depend on the epoch: the first measurement counts.
    """
    best = value_of(trial)
    if best is None:
        return None
    first = next(iter(trial.epochs.values()))
    return [best if name == "dsc" else first[name] for name in objectives]
