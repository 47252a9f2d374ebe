"""Subclasses of Ray Tune's early-stopping schedulers."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
from ray.tune.experiment import Trial
from ray.tune.schedulers import AsyncHyperBandScheduler, MedianStoppingRule, TrialScheduler


class SeededHyperBand(AsyncHyperBandScheduler):  # type: ignore[misc]  # Ray ships no types
    """Asynchronous HyperBand: several brackets of successive halving, each with a later first rung.

    Ray Tune draws the bracket of a trial from the global random state; here it depends on the seed and the number of
    the trial, so that a resumed sweep keeps it.
    """

    def __init__(self, seed: int, **settings: Any) -> None:
        super().__init__(**settings)
        self._seed = seed

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        """Assign a trial to a bracket; those with more rungs get more trials, as in Ray Tune."""
        sizes = np.array([len(bracket._rungs) for bracket in self._brackets])
        shares = np.exp(sizes - sizes.max())
        generator = np.random.default_rng([self._seed, int(re.sub(r"\D", "", trial.trial_id) or 0)])
        bracket = generator.choice(len(shares), p=shares / shares.sum())
        self._trial_info[trial.trial_id] = self._brackets[bracket]


class SteadyMedian(MedianStoppingRule):  # type: ignore[misc]  # Ray ships no types
    """Median stopping rule under which a trial with too few others to compare with continues instead of pausing."""

    def _on_insufficient_samples(self, tune_controller: Any, trial: Trial, time: float) -> str:
        return str(TrialScheduler.CONTINUE)
