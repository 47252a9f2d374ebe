"""Reasons for which a sweep ends before its last trial, or has nothing left to run."""

from __future__ import annotations

from collections.abc import Mapping

from gtvray.config import SweepConfig
from gtvray.tracking import Trial
from gtvray.tracking.trials import OUT_OF_BUDGET, STOPPED
from gtvray.tuning.searchers.base import value_of


def found_enough(sweep: SweepConfig, trials: Mapping[str, Trial]) -> str | None:
    """Return why target or plateau ends the search; None if it continues."""
    if sweep.target is None and sweep.plateau is None:
        return None
    values = {name: value_of(trial) for name, trial in trials.items()}
    known = {name: value for name, value in values.items() if value is not None}
    if not known:
        return None
    best = max(known, key=lambda name: known[name])
    if sweep.target is not None and known[best] >= sweep.target:
        return f"{best} has reached the target of {sweep.target:g}"
    later = list(trials.values())[list(trials).index(best) + 1 :]
    ended = sum(trial.ended for trial in later)
    if sweep.plateau is not None and ended >= sweep.plateau:
        return f"{ended} trials after {best} were no better"
    return None


def stopped_early(sweep: SweepConfig, trials: Mapping[str, Trial], elapsed_s: float) -> str | None:
    """Return why a sweep that has ended was stopped before all of its trials were trained; None if it was not.

    Args:
        sweep: its settings.
        trials: its trials.
        elapsed_s: seconds that it has run.
    """
    for trial in trials.values():
        # The scheduler, which stops single trials, gives no reason.
        if trial.state in (OUT_OF_BUDGET, STOPPED) and trial.reason is not None:
            return trial.reason
    if len(trials) >= sweep.trials:
        return None
    budget_s = sweep.time_budget_s
    if budget_s is not None and elapsed_s >= budget_s:
        return f"the time budget of {budget_s:g} s is spent"
    return found_enough(sweep, trials)


def nothing_to_run(sweep: SweepConfig, trials: Mapping[str, Trial], elapsed_s: float, *, complete: bool) -> str | None:
    """Return why resuming a sweep starts no trial, and what would; None if it starts some.

    Args:
        sweep: its settings, with the present budget and number of trials.
        trials: its trials so far.
        elapsed_s: seconds that it has run.
        complete: whether it has ended and neither more time nor more trials were given.
    """
    reason = found_enough(sweep, trials)
    if reason is not None:
        return f"{reason}; for more trials start a new sweep with another target or plateau, and warm_start"
    budget_s = sweep.time_budget_s
    if complete:
        return f"all {len(trials)} trials have ended; --extend adds trials"
    if budget_s is not None and elapsed_s >= budget_s:
        return (
            f"its time budget of {budget_s:g} s is not larger than the {elapsed_s:.0f} s that it has run; "
            "--budget sets the total"
        )
    return None
