"""Conditions that stop a sweep before its last trial: time budget, target and plateau."""

from __future__ import annotations

from typing import Any

from ray.tune import Stopper

from gtvray.config import SweepConfig
from gtvray.tracking import TrialRecord
from gtvray.tracking.trials import OUT_OF_BUDGET, STOPPED
from gtvray.tuning.searchers.base import value_of


class BudgetStopper(Stopper):  # type: ignore[misc]  # Ray ships no types
    """Stops a sweep whose time budget is spent.

    Args:
        sweep: settings of the sweep.
        record: record of the sweep, which counts the time of earlier sessions too.

    Attributes:
        state: state of the trials that are stopped.
        reason: why the sweep was stopped; None until then.
    """

    def __init__(self, sweep: SweepConfig, record: TrialRecord) -> None:
        self._sweep, self._record = sweep, record
        self.state: str = STOPPED
        self.reason: str | None = None

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Return False: single trials are stopped by the scheduler."""
        return False

    def stop_all(self) -> bool:
        """Return whether the sweep stops now."""
        budget_s = self._sweep.time_budget_s
        if self.reason is None and budget_s is not None and self._record.elapsed_s >= budget_s:
            self.state, self.reason = OUT_OF_BUDGET, f"the time budget of {budget_s:g} s is spent"
        return self.reason is not None


class SweepStopper(BudgetStopper):
    """Also stops a sweep that has reached its target, or whose later trials are no better."""

    def stop_all(self) -> bool:
        """Return whether the sweep stops now."""
        if self.reason is None:
            self.reason = self._found()
        return super().stop_all()

    def _found(self) -> str | None:
        """Return why the search ends, None if it continues."""
        if self._sweep.target is None and self._sweep.plateau is None:
            return None
        values = {name: value_of(trial) for name, trial in self._record.trials.items()}
        known = {name: value for name, value in values.items() if value is not None}
        if not known:
            return None
        best = max(known, key=lambda name: known[name])
        if self._sweep.target is not None and known[best] >= self._sweep.target:
            return f"{best} has reached the target of {self._sweep.target:g}"
        later = list(self._record.trials.values())[list(self._record.trials).index(best) + 1 :]
        ended = sum(trial.ended for trial in later)
        if self._sweep.plateau is not None and ended >= self._sweep.plateau:
            return f"{ended} trials after {best} were no better"
        return None
