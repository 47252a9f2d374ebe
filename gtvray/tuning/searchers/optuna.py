"""Optuna's samplers, used through the ask-and-tell interface on a study that is rebuilt from the record of the sweep.

The record is the storage: it survives kills, and the study built from it is the same before and after a kill.
A trial that was stopped early is PRUNED with its values by epoch, so that the sampler does not take the value of an
early epoch for that of a full training. Trials that still run count with a pessimistic value (constant liar), so that
parallel proposals differ.
"""

from __future__ import annotations

import json
import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import optuna
from optuna.importance import PedAnovaImportanceEvaluator
from optuna.samplers import BaseSampler, GPSampler, TPESampler
from optuna.trial import TrialState

from gtvray.config import Choice, Range, SweepConfig
from gtvray.tracking.trials import COMPLETED, FAILED, Trial
from gtvray.tuning.searchers.base import Proposal, best_so_far, value_of, values_of
from gtvray.tuning.searchers.random import QuasiRandomSearcher
from gtvray.tuning.space import Point, Space

# Below this number of trials a model has too little to learn from, and all points are quasi-random.
_FEWEST_TRIALS = 10
_MOST_START = 10
# Minimum number of trials with a value for fitting a model.
_FEWEST_VALUES = 2
_ATTEMPTS = 8


class OptunaSearcher(ABC):
    """An Optuna sampler after a quasi-random start, whose length depends on the number of trials.

    Attributes:
        earlier: trials of earlier sweeps, which count as part of the start.
    """

    def __init__(self, sweep: SweepConfig, space: Space) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._seed, self._space = sweep.seed, space
        self._start = QuasiRandomSearcher(sweep, space)
        self._starts = start_trials(sweep.trials)
        self._objectives, self._epochs = list(sweep.objectives), space.config.training.epochs
        self._study = optuna.create_study(
            directions=["maximize" if goal == "max" else "minimize" for goal in sweep.objectives.values()]
        )
        self.earlier: list[Trial] = []
        self._asked: dict[str, optuna.Trial] = {}
        self._told: set[str] = set()

    @abstractmethod
    def sampler(self, seed: int) -> BaseSampler:
        """Return a sampler with a seed."""

    def propose(self, trials: Sequence[Trial]) -> Proposal | None:
        """Return the next point; None if the space has no further one."""
        known = [*self.earlier, *trials]
        values = sum(trial.ended and value_of(trial) is not None for trial in known)
        if len(known) < self._starts or values < _FEWEST_VALUES:
            return self._start.propose(trials)
        self._synchronise(known)
        seen = [trial.settings for trial in known]
        for attempt in range(_ATTEMPTS):
            # A seed for every proposal, so that the next one does not depend on how many came before in this process.
            self._study.sampler = self.sampler(self._seed + 1_000_003 * len(trials) + attempt)
            asked = self._study.ask()
            point = self._space.build(lambda key, entry, asked=asked: _suggest(asked, key, entry))  # type: ignore[misc]
            # The trial enters the study again from the record, in the same way as after a resume.
            self._study.tell(asked, state=TrialState.FAIL)
            if point not in seen:
                return Proposal(point, "informed")
        return self._start.propose(trials)

    def _synchronise(self, trials: Sequence[Trial]) -> None:
        """Enter trials of the record into the study, and the results of those that have ended."""
        for trial in trials:
            if trial.trial_id not in self._asked and self._space.holds(trial.settings):
                self._asked[trial.trial_id] = self._enter(trial.settings)
            asked = self._asked.get(trial.trial_id)
            if asked is not None and trial.ended and trial.trial_id not in self._told:
                self._told.add(trial.trial_id)
                self._tell(asked, trial)

    def _enter(self, point: Point) -> optuna.Trial:
        self._study.enqueue_trial({key: _stored(value, self._space.entries[key]) for key, value in point.items()})
        asked = self._study.ask()
        for key in point:
            _suggest(asked, key, self._space.entries[key])
        return asked

    def _tell(self, asked: optuna.Trial, trial: Trial) -> None:
        values = values_of(trial, self._objectives)
        if trial.state == FAILED or values is None:
            self._study.tell(asked, state=TrialState.FAIL)
        elif len(values) > 1:
            # Optuna does not support pruned trials with several objectives. A stopped trial violates a constraint by
            # its number of missing epochs, so that the sampler prefers any complete trial.
            missing = 0.0 if trial.state == COMPLETED else self._epochs - max(trial.epochs)
            asked.set_constraint("epochs missing", missing)
            self._study.tell(asked, values)
        else:
            for epoch, best in best_so_far(trial):
                asked.report(best, epoch)
            if trial.state == COMPLETED:
                self._study.tell(asked, values[0])
            else:
                self._study.tell(asked, state=TrialState.PRUNED)


class TpeSearcher(OptunaSearcher):
    """Tree-structured Parzen estimator: multivariate for one objective, and by groups if some keys are conditional."""

    def sampler(self, seed: int) -> BaseSampler:
        """Return a sampler with a seed."""
        conditional = any(entry.when for entry in self._space.entries.values())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return TPESampler(seed=seed, n_startup_trials=0, group=conditional, constant_liar=True)


class GpSearcher(OptunaSearcher):
    """Gaussian process, for spaces with few numeric settings; learns from completed trials only."""

    def sampler(self, seed: int) -> BaseSampler:
        """Return a sampler with a seed."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return GPSampler(seed=seed, n_startup_trials=0, warn_independent_sampling=False)


def importances(sweep: SweepConfig, space: Space, trials: Sequence[Trial]) -> tuple[dict[str, float], int]:
    """Return the PED-ANOVA importance of each setting, and the number of completed trials that it is based on.

    Watanabe et al., "PED-ANOVA: Efficiently Quantifying Hyperparameter Importance in Arbitrary Subspaces" (IJCAI 2023).
    The importances are empty for fewer than ten completed trials, and omit settings that apply to some trials only.
    """
    searcher = TpeSearcher(sweep.model_copy(update={"objectives": {"dsc": "max"}}), space)
    searcher._synchronise(trials)
    complete = [trial for trial in searcher._study.trials if trial.state == TrialState.COMPLETE]
    if len(complete) < _FEWEST_TRIALS:
        return {}, len(complete)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = optuna.importance.get_param_importances(searcher._study, evaluator=PedAnovaImportanceEvaluator())
    return {key: float(value) for key, value in found.items()}, len(complete)


def start_trials(trials: int) -> int:
    """Return the number of trials before the first informed one, including those with given settings."""
    return trials if trials < _FEWEST_TRIALS else max(4, min(_MOST_START, trials // 3))


def _suggest(asked: optuna.Trial, key: str, entry: Range | Choice) -> Any:
    if isinstance(entry, Choice):
        return json.loads(asked.suggest_categorical(key, [json.dumps(value) for value in entry.choice]))
    low, high = entry.corners()
    if entry.integer:
        return asked.suggest_int(key, int(low), int(high), log=entry.log, step=int(entry.step or 1))
    return asked.suggest_float(key, low, high, log=entry.log, step=entry.step)


def _stored(value: Any, entry: Range | Choice) -> Any:
    """Return a value as Optuna stores it; lists cannot be categories, so choices are stored as JSON text."""
    return json.dumps(value) if isinstance(entry, Choice) else value
