"""Schedulers with the results of the record: an interrupted sweep decides as an uninterrupted one."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest
from ray.tune.experiment import Trial
from ray.tune.schedulers import TrialScheduler

from gtvray.config import Config, SchedulerConfig, SweepConfig
from gtvray.tracking import TrialRecord
from gtvray.tracking.trials import COMPLETED, STOPPED
from gtvray.tuning.schedulers.registry import SCHEDULERS, build_scheduler
from gtvray.tuning.space import Space

EPOCHS = 9


class Run:
    """A scheduler that hears of trials one after the other; `record` is what a resumed sweep has of them."""

    def __init__(self, folder: Path, **scheduler: Any) -> None:
        self.sweep = SweepConfig.model_validate(
            {"trials": 20, "space": {"optimizer.lr": {"low": 0.1, "high": 1}}, "scheduler": scheduler}
        )
        self.folder = folder
        self.resume()

    def resume(self) -> None:
        self.record = TrialRecord(self.folder)
        space = Space(self.sweep.space, Config())
        unfinished = [name for name, trial in self.record.trials.items() if not trial.ended]
        self.scheduler = build_scheduler(self.sweep, space, EPOCHS, self.record, unfinished)

    def train(self, name: str, values: list[float], *, upto: int = EPOCHS) -> int:
        """The number of epochs that a trial runs for, of those it is asked for."""
        trial = Trial("trial", stub=True, trial_id=name)
        if name not in self.record.trials:
            self.record.plan(name, {"optimizer.lr": 0.5}, "random")
        self.record.start(name)
        self.scheduler.on_trial_add(None, trial)
        for epoch, value in enumerate(values[:upto], 1):
            result = {"epoch": epoch, "selection_dsc": value}
            decision = self.scheduler.on_trial_result(None, trial, result)
            self.record.epoch(name, epoch, {"selection_dsc": value})
            if decision == TrialScheduler.STOP:
                self.scheduler.on_trial_complete(None, trial, result)
                self.record.end(name, COMPLETED if epoch == EPOCHS else STOPPED)
                return epoch
        return min(len(values), upto)


def flat(value: float) -> list[float]:
    return [value] * EPOCHS


def test_every_choice_has_a_scheduler() -> None:
    assert set(get_args(SchedulerConfig.model_fields["kind"].annotation)) == set(SCHEDULERS)


@pytest.mark.parametrize("resumed", [False, True])
def test_asha_keeps_one_in_three_at_each_rung(resumed: bool, tmp_path: Path) -> None:
    run = Run(tmp_path, kind="asha", grace_epochs=1)
    assert run.sweep.scheduler.rungs(EPOCHS) == [1, 3]
    lengths = []
    for number, value in enumerate((0.5, 0.6, 0.4, 0.52, 0.7, 0.3)):
        if resumed:
            run.resume()
        lengths.append(run.train(f"t{number}", flat(value)))
    assert lengths == [9, 9, 1, 1, 9, 1]


def test_a_trial_that_passed_a_rung_is_not_judged_there_again(tmp_path: Path) -> None:
    run = Run(tmp_path, kind="asha", grace_epochs=3)
    assert run.train("t0", flat(0.5), upto=4) == 4
    run.train("t1", flat(0.9))
    run.resume()
    assert run.train("t0", flat(0.5)) == 9
    run.resume()
    assert run.train("t2", flat(0.6)) == 3, "the rung has both"


def test_a_value_is_that_of_the_best_epoch_so_far(tmp_path: Path) -> None:
    run = Run(tmp_path, kind="asha", grace_epochs=3)
    run.train("t0", flat(0.5))
    assert run.train("t1", [0.2, 0.6, 0.1, *flat(0.1)]) == 9
    assert run.train("t2", [0.2, 0.4, 0.4, *flat(0.9)]) == 3


def test_without_a_scheduler_every_trial_runs_to_its_end(tmp_path: Path) -> None:
    run = Run(tmp_path, kind="none")
    assert run.sweep.scheduler.rungs(EPOCHS) == []
    assert [run.train(f"t{number}", flat(1 / (1 + number))) for number in range(5)] == [9] * 5
