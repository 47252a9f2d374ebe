"""Racing over folds: a point is trained on its next fold unless the best point is significantly better.

Birattari et al., "A Racing Algorithm for Configuring Metaheuristics" (GECCO 2002), with a paired signed-rank test on
the DSC of single cases instead of the Friedman test on instances.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean
from typing import cast

from gtvray.evaluation.statistics import FEWEST_CASES, signed_rank_p
from gtvray.tracking.trials import COMPLETED, Origin, Trial
from gtvray.tuning.searchers.base import METRIC, Proposal, Searcher, WaitForTrial, value_of
from gtvray.tuning.searchers.repeated import SEED, by_point, without_seed

# One-sided significance level. A false rejection loses one point; a false acceptance costs one training.
LEVEL = 0.05


class FoldRacing:
    """Proposes the next fold of points that are still in the race, and otherwise new points on the first fold.

    Args:
        searcher: proposes points, from the trials of the first fold.
        folds: number of folds.
        seed: seed of the first fold.
    """

    def __init__(self, searcher: Searcher, folds: int, seed: int) -> None:
        self._searcher, self._folds, self._seed = searcher, folds, seed

    def propose(self, trials: Sequence[Trial]) -> Proposal | None:
        """Return the next fold of the most promising point, or a new point; None if there is neither.

        Raises:
            WaitForTrial: the space has no further point, and a running trial may qualify its point for another fold.
        """
        groups = by_point(trials)
        eligible = [group for group in groups if len(group) < self._folds and _complete(group)]
        best = best_group(groups)
        earned = [group for group in eligible if not is_worse(group, best)]
        if earned:
            # The point with the most folds is the closest to completion.
            group = max(earned, key=lambda each: (len(each), mean_value(each)))
            return Proposal({**group[0].settings, SEED: self._seed + len(group)}, cast(Origin, group[0].origin))
        # Only the first fold, which all points have: means over different folds are not comparable.
        proposal = self._searcher.propose([without_seed(group[0]) for group in groups])
        if proposal is not None:
            return replace(proposal, point={**proposal.point, SEED: self._seed})
        if any(not group[-1].ended and len(group) < self._folds for group in groups):
            raise WaitForTrial
        return None


def best_group(groups: Sequence[Sequence[Trial]]) -> Sequence[Trial]:
    """Return the point with the most complete folds, and of these the one with the highest mean; empty without any."""
    sound = [[trial for trial in group if trial.state == COMPLETED] for group in groups]
    return max((group for group in sound if group), key=lambda group: (len(group), mean_value(group)), default=[])


def is_worse(group: Sequence[Trial], best: Sequence[Trial]) -> bool:
    """Return whether a point is worse than the best one on the cases of the folds that both have.

    The test is Wilcoxon's signed-rank test on the paired DSC of single cases, one-sided, at the level `LEVEL`.
    """
    of_fold = {trial.settings.get(SEED): trial for trial in group}
    pairs = [(of_fold[seed], each) for each in best if (seed := each.settings.get(SEED)) in of_fold]
    values = [
        (candidate, incumbent)
        for trial, other in pairs
        for candidate, incumbent in zip(best_cases(trial), best_cases(other), strict=True)
    ]
    # Fewer cases than the test accepts decide nothing.
    if len(values) < FEWEST_CASES or group[0].settings == best[0].settings:
        return False
    candidates, incumbents = zip(*values, strict=True)
    return signed_rank_p(incumbents, candidates) < LEVEL


def best_cases(trial: Trial) -> Sequence[float]:
    """Return the DSC of each selection case at the best epoch of a trial."""
    best = value_of(trial)
    epoch = next(epoch for epoch, metrics in trial.epochs.items() if metrics[METRIC] == best)
    return trial.cases[epoch]


def mean_value(group: Sequence[Trial]) -> float:
    """Return the mean of the values of trials."""
    return fmean(value for trial in group if (value := value_of(trial)) is not None)


def _complete(group: Sequence[Trial]) -> bool:
    return all(trial.state == COMPLETED for trial in group)
