"""When a sweep stops before its last trial."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gtvray.config import SweepConfig
from gtvray.tracking import TrialRecord
from gtvray.tracking.trials import COMPLETED, OUT_OF_BUDGET, STOPPED
from gtvray.tuning.stopping import SweepStopper


def stopper(folder: Path, values: list[float], *, running: float | None = None, **settings: Any) -> SweepStopper:
    """Return the stopper of a sweep whose trials have ended with these values; one more may be running."""
    record = TrialRecord(folder)
    record.begin_session()
    for number, value in enumerate([*values, *([] if running is None else [running])]):
        record.plan(f"t{number}", {}, "random")
        record.start(f"t{number}")
        record.epoch(f"t{number}", 1, {"selection_dsc": value})
        if number < len(values):
            record.end(f"t{number}", COMPLETED)
    sweep = SweepConfig.model_validate({"space": {"optimizer.lr": {"low": 0.1, "high": 1}}, **settings})
    return SweepStopper(sweep, record)


@pytest.mark.parametrize(
    ("settings", "running", "reason"),
    [
        ({}, None, None),
        ({"target": 0.7}, None, None),
        ({"target": 0.6}, None, "t1 has reached the target of 0.6"),
        ({"target": 0.7}, 0.75, "t4 has reached the target of 0.7"),
        ({"plateau": 3}, None, None),
        ({"plateau": 2}, None, "2 trials after t1 were no better"),
        ({"plateau": 2}, 0.65, None),
        ({"time_budget_s": 1e-9}, None, "the time budget of 1e-09 s is spent"),
        ({"time_budget_s": 1000}, None, None),
    ],
)
def test_a_sweep_stops_for_a_reason(
    settings: dict[str, Any], running: float | None, reason: str | None, tmp_path: Path
) -> None:
    rule = stopper(tmp_path, [0.5, 0.6, 0.6, 0.4], running=running, **settings)
    assert rule.stop_all() is (reason is not None)
    assert rule.reason == reason
    if reason is not None:
        assert rule.state == (OUT_OF_BUDGET if "budget" in reason else STOPPED)
    assert not rule("t0", {}), "it does not stop single trials"


def test_without_a_result_nothing_is_reached(tmp_path: Path) -> None:
    assert not stopper(tmp_path, [], target=0.1, plateau=1).stop_all()
