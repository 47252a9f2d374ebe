"""The registry of searchers.

To add one, write a module beside this one with a class that implements `Searcher`, add its name to
`SweepConfig.searcher` and the class to `SEARCHERS`; `tests/tuning/test_searchers.py` then covers it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from gtvray.config import SweepConfig
from gtvray.tracking.trials import Trial
from gtvray.tuning.searchers.base import Proposal, Searcher
from gtvray.tuning.searchers.grid import GridSearcher
from gtvray.tuning.searchers.optuna import GpSearcher, OptunaSearcher, TpeSearcher
from gtvray.tuning.searchers.racing import FoldRacing
from gtvray.tuning.searchers.random import RandomSearcher
from gtvray.tuning.searchers.repeated import RepeatedPoints
from gtvray.tuning.space import Point, Space, unseen

SEARCHERS: Mapping[str, Callable[[SweepConfig, Space], Searcher]] = {
    "optuna": TpeSearcher,
    "gp": GpSearcher,
    "random": RandomSearcher,
    "grid": GridSearcher,
}


class FirstPoints:
    """Proposes the default settings, then the points given by the user, then those of a searcher."""

    def __init__(self, sweep: SweepConfig, space: Space, default: Point, earlier: Sequence[Trial]) -> None:
        self._searcher = SEARCHERS[sweep.searcher](sweep, space)
        if isinstance(self._searcher, OptunaSearcher):
            self._searcher.earlier = list(earlier)
        given = unseen([space.complete(point) for point in sweep.start], [default])
        self._first = [Proposal(default, "default"), *(Proposal(point, "given") for point in given)]

    def propose(self, trials: Sequence[Trial]) -> Proposal | None:
        """Return the next point; None if the space has no further one."""
        if len(trials) < len(self._first):
            return self._first[len(trials)]
        return self._searcher.propose(trials)


def build_searcher(sweep: SweepConfig, space: Space, default: Point, earlier: Sequence[Trial] = ()) -> Searcher:
    """Return the searcher of a sweep.

    Args:
        sweep: settings of the sweep.
        space: its search space.
        default: the first point.
        earlier: trials of earlier sweeps that a model learns from.
    """
    points = FirstPoints(sweep, space, default, earlier)
    seed = space.config.training.seed
    if sweep.folds > 1:
        return FoldRacing(points, sweep.folds, seed)
    return points if sweep.repeats == 1 else RepeatedPoints(points, sweep.repeats, seed)
