"""A sweep that learns from an earlier one."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from gtvray.config import Config, SweepConfig, with_dotted
from gtvray.errors import InputError, NotFoundError
from gtvray.tracking import TrialRecord
from gtvray.tracking.trials import COMPLETED, STOPPED
from gtvray.tuning.resume import remember_sweep
from gtvray.tuning.searchers.registry import build_searcher
from gtvray.tuning.space import Space
from gtvray.tuning.warm_start import earlier_trials

RATE = {"low": 1e-4, "high": 1e-1, "log": True}
SWEEP = SweepConfig.model_validate(
    {"trials": 30, "space": {"optimizer.lr": RATE, "loss.kind": {"choice": ["dice_ce"]}}}
)


@pytest.fixture
def sweeps(tmp_path: Path) -> Path:
    """An earlier sweep of twelve trials over the learning rate, best at 0.01; one was stopped."""
    earlier = SweepConfig.model_validate({"space": {"optimizer.lr": RATE}})
    remember_sweep(tmp_path / "first", earlier, Config(), "d1")
    record = TrialRecord(tmp_path / "first")
    for number in range(12):
        rate = 10 ** (-4 + number / 4)
        record.plan(f"t{number}", {"optimizer.lr": rate}, "start")
        record.start(f"t{number}")
        record.epoch(f"t{number}", 1, {"selection_dsc": 1 - abs(math.log10(rate) + 2) / 3})
        record.end(f"t{number}", STOPPED if number == 3 else COMPLETED)
    return tmp_path


def test_trials_of_the_earlier_sweep_become_points_of_this_one(sweeps: Path) -> None:
    space = Space(SWEEP.space, Config())
    found = earlier_trials(sweeps, ["first"], space, "d1")
    assert [trial.trial_id for trial in found] == [f"first/t{number}" for number in range(12) if number != 3]
    assert all(trial.settings["loss.kind"] == "dice_ce" for trial in found), "its setting outside its space"
    assert all(space.holds(trial.settings) for trial in found)
    searcher = build_searcher(SWEEP, space, space.default(), found)
    first = searcher.propose([])
    assert first is not None
    assert first.origin == "default"
    record = TrialRecord(sweeps / "second")
    record.plan("t0", first.point, first.origin)
    second = searcher.propose(list(record.trials.values()))
    assert second is not None
    assert second.origin == "informed", "no start of its own"
    assert abs(math.log10(second.point["optimizer.lr"]) + 2) < 1
    cold = build_searcher(SWEEP, space, space.default()).propose(list(record.trials.values()))
    assert cold is not None
    assert cold.origin == "start"


@pytest.mark.parametrize(
    ("names", "data", "error", "what"),
    [
        (["none"], "d1", NotFoundError, "no such sweep"),
        (["../first"], "d1", NotFoundError, "no such sweep"),
        (["first"], "d2", InputError, "used other data"),
    ],
)
def test_unusable_earlier_sweep_is_refused(
    names: list[str], data: str, error: type[InputError], what: str, sweeps: Path
) -> None:
    with pytest.raises(error, match=what):
        earlier_trials(sweeps, names, Space(SWEEP.space, Config()), data)


def test_trials_with_other_settings_are_not_comparable(sweeps: Path) -> None:
    longer = with_dotted(Config(), {"training.epochs": 40})
    with pytest.raises(InputError, match="could be one of this sweep"):
        earlier_trials(sweeps, ["first"], Space(SWEEP.space, longer), "d1")
    moved = with_dotted(Config(), {"training.cpus_per_worker": 2, "serving.port": 9000})
    assert len(earlier_trials(sweeps, ["first"], Space(SWEEP.space, moved), "d1")) == 11


def test_nothing_to_learn_from(tmp_path: Path) -> None:
    assert earlier_trials(tmp_path, [], Space(SWEEP.space, Config()), "d1") == []
