"""Points that do not depend on the results of trials: pseudo-random and quasi-random."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from scipy.stats import qmc

from gtvray.config import SweepConfig
from gtvray.tracking.trials import Origin, Trial
from gtvray.tuning.searchers.base import Proposal
from gtvray.tuning.space import Point, Space, unseen

# After this many draws of known points in a row the space counts as exhausted.
_ATTEMPTS = 200


class RandomSearcher:
    """Random search: independent points, none twice."""

    def __init__(self, sweep: SweepConfig, space: Space) -> None:
        self._seed, self._space = sweep.seed, space

    def propose(self, trials: Sequence[Trial]) -> Proposal | None:
        """Return the next point; None if the space has no further one."""
        generator = np.random.default_rng([self._seed, len(trials)])
        return first_unseen(
            lambda: self._space.at(generator.random(len(self._space.entries)).tolist()), trials, "random"
        )


class QuasiRandomSearcher:
    """Points of a scrambled Halton sequence, which cover the space more evenly than random ones."""

    def __init__(self, sweep: SweepConfig, space: Space) -> None:
        self._seed, self._space = sweep.seed, space

    def propose(self, trials: Sequence[Trial]) -> Proposal | None:
        """Return the next point; None if the space has no further one."""
        sequence = qmc.Halton(len(self._space.entries), scramble=True, rng=np.random.default_rng(self._seed))
        sequence.fast_forward(sum(trial.origin == "start" for trial in trials))
        return first_unseen(lambda: self._space.at(sequence.random(1)[0].tolist()), trials, "start")


def first_unseen(draw: Callable[[], Point], trials: Sequence[Trial], origin: Origin) -> Proposal | None:
    """Draw points until one is not that of an earlier trial; None if there seems to be none."""
    seen = [trial.settings for trial in trials]
    point = next(unseen([draw()], seen), None) or next(unseen([draw() for _ in range(_ATTEMPTS)], seen), None)
    return None if point is None else Proposal(point, origin)
