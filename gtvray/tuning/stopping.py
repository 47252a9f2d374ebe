"""Conditions that stop a sweep before its last trial: time budget, target and plateau."""

from __future__ import annotations

from typing import Any

from ray.tune import Stopper

from gtvray.config import SweepConfig
from gtvray.tracking import TrialRecord
from gtvray.tracking.trials import OUT_OF_BUDGET, STOPPED
from gtvray.tuning.endings import found_enough


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
            self.reason = found_enough(self._sweep, self._record.trials)
        return super().stop_all()
