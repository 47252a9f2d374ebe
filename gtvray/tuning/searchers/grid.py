"""Grid search: every combination of the grid values of the space."""

from __future__ import annotations

from collections.abc import Sequence

from gtvray.config import SweepConfig
from gtvray.tracking.trials import Trial
from gtvray.tuning.searchers.base import Proposal
from gtvray.tuning.space import Space, unseen


class GridSearcher:
    """Every point of the grid once, in order."""

    def __init__(self, sweep: SweepConfig, space: Space) -> None:
        self._points = space.grid()

    def propose(self, trials: Sequence[Trial]) -> Proposal | None:
        """Return the next point; None after the last one."""
        point = next(unseen(self._points, [trial.settings for trial in trials]), None)
        return None if point is None else Proposal(point, "grid")
