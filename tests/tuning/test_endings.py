"""Why a sweep ended early, and why resuming one starts no trial."""

from __future__ import annotations

from typing import Any

import pytest

from gtvray.config import SweepConfig
from gtvray.tracking import Trial
from gtvray.tracking.trials import COMPLETED, OUT_OF_BUDGET, STOPPED
from gtvray.tuning.endings import nothing_to_run, stopped_early


def sweep(**settings: Any) -> SweepConfig:
    return SweepConfig.model_validate({"space": {"optimizer.lr": {"low": 0.1, "high": 1}}, "trials": 4, **settings})


def trials(*values: float, **last: Any) -> dict[str, Trial]:
    """Return completed trials with these values; `last` changes the last one."""
    found = [Trial(f"t{at}", {}, {1: {"selection_dsc": each}}, state=COMPLETED) for at, each in enumerate(values)]
    for name, value in last.items():
        setattr(found[-1], name, value)
    return {trial.trial_id: trial for trial in found}


@pytest.mark.parametrize(
    ("settings", "ended", "reason"),
    [
        ({}, trials(0.5, 0.6, 0.4, 0.3), None),
        ({}, trials(0.5, 0.6, 0.4, state=STOPPED, rung=1), None),
        ({"target": 0.6}, trials(0.5, 0.6), "t1 has reached the target of 0.6"),
        ({"target": 0.6}, trials(0.5, 0.4, 0.4, 0.6), None),
        ({"plateau": 2}, trials(0.6, 0.5, 0.4), "2 trials after t0 were no better"),
        ({"plateau": 2}, trials(0.6, 0.5, 0.4, 0.3, state=STOPPED, reason="2 trials after t0"), "2 trials after t0"),
        ({"time_budget_s": 60}, trials(0.6, 0.5), "the time budget of 60 s is spent"),
        ({"time_budget_s": 60}, trials(0.6, state=OUT_OF_BUDGET, reason="the time budget"), "the time budget"),
        ({"time_budget_s": 90}, trials(0.6, 0.5), None),
    ],
)
def test_reason_of_an_early_end(settings: dict[str, Any], ended: dict[str, Trial], reason: str | None) -> None:
    assert stopped_early(sweep(**settings), ended, 75.0) == reason


def test_reason_why_a_resume_starts_no_trial() -> None:
    two = trials(0.5, 0.6)
    assert nothing_to_run(sweep(target=0.7, plateau=2, time_budget_s=90), two, 75.0, complete=False) is None
    for settings, complete, expected in (
        ({"target": 0.6}, False, "t1 has reached the target of 0.6; "),
        ({"time_budget_s": 60}, False, "its time budget of 60 s is not larger than the 75 s that it has run; "),
        ({}, True, "all 2 trials have ended; --extend"),
    ):
        reason = nothing_to_run(sweep(**settings), two, 75.0, complete=complete)
        assert reason is not None
        assert reason.startswith(expected)
