"""Several trials of every point with different seeds, which a searcher sees as one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any, cast

from gtvray.config import SweepConfig
from gtvray.tracking.trials import COMPLETED, FAILED, STOPPED, Origin, Trial
from gtvray.tuning.searchers.base import Proposal, Searcher

SEED = "training.seed"


class RepeatedPoints:
    """Proposes each point of a searcher several times, with one seed after the other.

    Args:
        searcher: proposes points, from trials that are means over seeds.
        repeats: trials of each point.
        seed: first seed.
    """

    def __init__(self, searcher: Searcher, repeats: int, seed: int) -> None:
        self._searcher, self._repeats, self._seed = searcher, repeats, seed

    def propose(self, trials: Sequence[Trial]) -> Proposal | None:
        """Return the next point with its seed; None if the space has no further one."""
        groups = by_point(trials)
        last = groups[-1] if groups else []
        if 0 < len(last) < self._repeats:
            return Proposal({**last[0].settings, SEED: self._seed + len(last)}, cast(Origin, last[0].origin))
        proposal = self._searcher.propose([_mean(group) for group in groups])
        return None if proposal is None else replace(proposal, point={**proposal.point, SEED: self._seed})


def members_per_point(sweep: SweepConfig) -> int:
    """Return the number of trials of a point: one per fold or repeat."""
    return max(sweep.folds, sweep.repeats)


def by_point(trials: Sequence[Trial]) -> list[list[Trial]]:
    """Group trials that differ in their seed alone, in order."""
    groups: list[list[Trial]] = []
    for trial in trials:
        group = next((each for each in groups if same_point(each[0].settings, trial.settings)), None)
        if group is None:
            groups.append([trial])
        else:
            group.append(trial)
    return groups


def as_points(trials: Sequence[Trial], sweep: SweepConfig) -> list[Trial]:
    """Return one trial per point: with repeats the mean over seeds, with folds the trial of the first fold.

    Means over different numbers of folds are not comparable.
    """
    if sweep.repeats > 1:
        return [_mean(group) for group in by_point(trials)]
    return [without_seed(group[0]) for group in by_point(trials)] if sweep.folds > 1 else list(trials)


def without_seed(trial: Trial) -> Trial:
    """Return a trial as one whose point has no seed."""
    return replace(trial, settings=_point(trial.settings))


def same_point(first: Mapping[str, Any], second: Mapping[str, Any]) -> bool:
    """Return whether two trials differ in their seed at most."""
    return _point(first) == _point(second)


def _point(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if key != SEED}


def _mean(group: Sequence[Trial]) -> Trial:
    """Return the trials of a point as one: the mean of each epoch that all of them have."""
    sound = [trial for trial in group if trial.state != FAILED] or list(group)
    shared = set.intersection(*(set(trial.epochs) for trial in sound))
    epochs = {
        epoch: {name: fmean(trial.epochs[epoch][name] for trial in sound) for name in sound[0].epochs[epoch]}
        for epoch in sorted(shared)
    }
    ended = all(trial.ended for trial in group)
    complete = all(trial.state == COMPLETED for trial in sound)
    failed = all(trial.state == FAILED for trial in group)
    state = group[-1].state if not ended else FAILED if failed else COMPLETED if complete else STOPPED
    return replace(group[0], settings=_point(group[0].settings), epochs=epochs, state=state)
