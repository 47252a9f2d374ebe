"""Grid search: every combination of the grid values of the space."""

from __future__ import annotations

from collections.abc import Sequence

from gtvray.config import SweepConfig
from gtvray.tracking.trials import Trial
from gtvray.tuning.searchers.base import Proposal
from gtvray.tuning.space import Space


class GridSearcher:
    """Every point of the grid once, in order."""

    def __init__(self, sweep: SweepConfig, space: Space) -> None:
        self._points = space.grid()
        self._next = next(self._points, None)

    def propose(self, trials: Sequence[Trial]) -> Proposal | None:
        """Return the next point; None after the last one."""
        seen = [trial.settings for trial in trials]
        # The points differ from each other, so one that was tried is not needed again.
        while self._next is not None and self._next in seen:
            self._next = next(self._points, None)
        return None if self._next is None else Proposal(self._next, "grid")
