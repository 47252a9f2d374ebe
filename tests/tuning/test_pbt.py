"""Population-based training: weights and settings that a trial takes over, and their record."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.schedulers import PopulationBasedTraining, TrialScheduler

from gtvray.config import Config, SweepConfig
from gtvray.tracking import TrialRecord
from gtvray.tuning.schedulers.pbt import RecordedPbt, _domain
from gtvray.tuning.schedulers.registry import Setting, build_scheduler
from gtvray.tuning.space import Space

SWEEP = SweepConfig.model_validate(
    {
        "trials": 4,
        "space": {
            "optimizer.lr": {"low": 1e-3, "high": 1e-1, "log": True},
            "training.foreground_share": {"low": 0.2, "high": 0.8, "step": 0.2},
            "loss.kind": {"choice": ["dice_ce", "dice_focal"]},
        },
        "scheduler": {"kind": "pbt", "grace_epochs": 2},
    }
)
SPACE = Space(SWEEP.space, Config())
POINT = {"optimizer.lr": 0.1, "training.foreground_share": 0.8, "loss.kind": "dice_ce"}


@pytest.fixture
def record(tmp_path: Path) -> TrialRecord:
    found = TrialRecord(tmp_path)
    for name in ("t0", "t1"):
        found.plan(name, POINT, "random")
        found.start(name)
        found.epoch(name, 4, {"selection_dsc": 0.5})
    return found


def trial(name: str) -> TuneTrial:
    return TuneTrial("trial", stub=True, trial_id=name, config=dict(POINT))


def test_changed_values_stay_in_their_ranges_and_on_their_steps() -> None:
    pbt = RecordedPbt(SWEEP, SPACE, TrialRecord(Path("/no/such/folder")))
    better, worse = trial("t0"), trial("t1")
    drawn = [pbt._get_new_config(worse, better)[0] for _ in range(60)]
    assert all(SPACE.holds(point) for point in drawn)
    assert len({point["optimizer.lr"] for point in drawn}) > 5
    assert {round(point["training.foreground_share"], 6) for point in drawn} >= {0.6, 0.8}
    assert {point["loss.kind"] for point in drawn} == {"dice_ce", "dice_focal"}


def test_domains_are_those_of_the_space() -> None:
    entries = SweepConfig.model_validate(
        {
            "space": {
                "training.batch_size": {"low": 2, "high": 3, "integer": True},
                "training.steps_per_epoch": {"low": 10, "high": 20, "integer": True, "log": True},
                "optimizer.momentum": {"low": 0.5, "high": 0.9},
                "loss.kind": {"choice": ["dice_ce", "dice_focal"]},
            }
        }
    ).space
    drawn: dict[str, Any] = {
        key: [domain.sample() for _ in range(50)] if hasattr(domain := _domain(entry), "sample") else domain
        for key, entry in entries.items()
    }
    assert set(drawn["training.batch_size"]) == {2, 3}
    assert (min(drawn["training.steps_per_epoch"]) >= 10, max(drawn["training.steps_per_epoch"]) <= 20) == (True, True)
    assert all(0.5 <= value <= 0.9 for value in drawn["optimizer.momentum"])
    assert drawn["loss.kind"] == ["dice_ce", "dice_focal"]


def test_an_exploit_is_recorded_with_its_source(record: TrialRecord, monkeypatch: pytest.MonkeyPatch) -> None:
    pbt = RecordedPbt(SWEEP, SPACE, record)
    better, worse = trial("t0"), trial("t1")
    # The record does not contain the last reported epoch yet.
    states = {better: {"epoch": 5}, worse: {"epoch": 5}}
    pbt._trial_state = {each: SimpleNamespace(last_result=result) for each, result in states.items()}

    def exploit(self: Any, controller: Any, target: TuneTrial, source: TuneTrial) -> None:
        target.set_config({**POINT, "optimizer.lr": 0.08})

    monkeypatch.setattr(PopulationBasedTraining, "_exploit", exploit)
    pbt._exploit(None, worse, better)
    (found,) = record.trials["t1"].exploits
    assert found[:2] == (5, {**POINT, "optimizer.lr": 0.08})
    assert found[2].startswith("epoch 5 of t0, with optimizer.lr=0.08 ")
    assert record.trials["t1"].settings["optimizer.lr"] == 0.08
    assert record.trials["t0"].exploits == []
    assert record.trials["t1"].to_take_over == ("t0", 5)


def test_earlier_epochs_of_a_resumed_population_change_nothing(record: TrialRecord) -> None:
    setting = Setting(SWEEP, SPACE, 8, record, exhausted=lambda: True)
    scheduler = build_scheduler(setting, ["t0", "t1"])
    population = [trial("t0"), trial("t1")]
    controller = SimpleNamespace(search_alg=None, get_trials=lambda: population, get_live_trials=lambda: population)
    for each in population:
        each.set_status(TuneTrial.RUNNING)
        scheduler.on_trial_add(controller, each)
    reported = [
        scheduler.on_trial_result(controller, population[0], {"epoch": epoch, "selection_dsc": 0.1})
        for epoch in (1, 2, 3, 4)
    ]
    assert set(reported) == {TrialScheduler.CONTINUE}
    # The first new epoch ends a perturbation interval, at which trials wait for each other.
    assert (
        scheduler.on_trial_result(controller, population[0], {"epoch": 5, "selection_dsc": 0.1}) == TrialScheduler.PAUSE
    )


class Population:
    """The part of Tune's controller that the scheduler uses; one trial runs at a time."""

    search_alg = None

    def __init__(self, scheduler: RecordedPbt, names: list[str]) -> None:
        self.scheduler, self.trials = scheduler, [trial(name) for name in names]
        self.live, self.epochs = set(self.trials), dict.fromkeys(names, 0)
        for each in self.trials:
            scheduler.on_trial_add(self, each)

    def get_trials(self) -> list[TuneTrial]:
        return self.trials

    def get_live_trials(self) -> set[TuneTrial]:
        return self.live

    def _schedule_trial_save(self, of_trial: TuneTrial, result: dict[str, Any]) -> None:
        """Save no checkpoint, so that no weights are taken over."""

    def run(self, epochs: int, fails: str) -> None:
        """Train all trials for a number of epochs; one fails for good in its first."""
        while (chosen := self.scheduler.choose_trial_to_run(self)) is not None:
            chosen.set_status(TuneTrial.RUNNING)
            if chosen.trial_id == fails:
                # As in Ray Tune, which leaves the trial among the live ones.
                self.scheduler.on_trial_error(self, chosen)
                chosen.set_status(TuneTrial.ERROR)
            while chosen.status == TuneTrial.RUNNING:
                self._epoch(chosen, epochs)

    def _epoch(self, chosen: TuneTrial, epochs: int) -> None:
        name = chosen.trial_id
        self.epochs[name] += 1
        result = {"epoch": self.epochs[name], "selection_dsc": 0.5}
        if self.epochs[name] == epochs:
            self.scheduler.on_trial_complete(self, chosen, result)
            chosen.set_status(TuneTrial.TERMINATED)
            self.live.discard(chosen)
        elif self.scheduler.on_trial_result(self, chosen, result) == TrialScheduler.PAUSE:
            chosen.set_status(TuneTrial.PAUSED)


@pytest.mark.parametrize("fails", ["t0", "t1", "t2"])
def test_a_population_continues_without_a_trial_that_failed(fails: str, tmp_path: Path) -> None:
    population = Population(RecordedPbt(SWEEP, SPACE, TrialRecord(tmp_path)), ["t0", "t1", "t2"])
    population.run(epochs=7, fails=fails)
    assert population.epochs == {"t0": 7, "t1": 7, "t2": 7} | {fails: 0}
    assert population.scheduler._next_perturbation_sync == 8, "perturbed after epochs 2, 4 and 6"
