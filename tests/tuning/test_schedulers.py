"""Schedulers restored from the record: a resumed sweep makes the decisions of an uninterrupted one."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest
from ray.tune.experiment import Trial
from ray.tune.schedulers import TrialScheduler

from gtvray.config import Config, SchedulerConfig, SweepConfig
from gtvray.tracking import TrialRecord
from gtvray.tracking.trials import COMPLETED, STOPPED
from gtvray.tuning.schedulers.pasha import PashaRule
from gtvray.tuning.schedulers.registry import SCHEDULERS, Setting, build_scheduler
from gtvray.tuning.space import Space

EPOCHS = 9


class Run:
    """A scheduler that is given one trial after the other; a resumed sweep knows them by `record`."""

    def __init__(self, folder: Path, **scheduler: Any) -> None:
        self.sweep = SweepConfig.model_validate(
            {"trials": 20, "space": {"optimizer.lr": {"low": 0.1, "high": 1}}, "scheduler": scheduler}
        )
        self.folder, self.exhausted = folder, True
        self.trials: list[Trial] = []
        self.resume()

    def resume(self) -> None:
        self.record = TrialRecord(self.folder)
        space = Space(self.sweep.space, Config())
        unfinished = [name for name, trial in self.record.trials.items() if not trial.ended]
        setting = Setting(self.sweep, space, EPOCHS, self.record, exhausted=lambda: self.exhausted)
        self.scheduler = build_scheduler(setting, unfinished)

    def train(self, name: str, values: list[float], *, upto: int = EPOCHS) -> int:
        """Return the number of epochs that a trial runs before it is stopped, at most `upto`."""
        trial = Trial("trial", stub=True, trial_id=name)
        if name not in self.record.trials:
            self.record.plan(name, {"optimizer.lr": 0.5}, "random")
        self.record.start(name)
        self.scheduler.on_trial_add(None, trial)
        for epoch, value in enumerate(values[:upto], 1):
            result = {"epoch": epoch, "selection_dsc": value}
            decision = self.scheduler.on_trial_result(None, trial, result)
            self.record.epoch(name, epoch, {"selection_dsc": value})
            if decision == TrialScheduler.STOP or epoch == EPOCHS:
                self.scheduler.on_trial_complete(None, trial, result)
                self.record.end(name, COMPLETED if epoch == EPOCHS else STOPPED)
                return epoch
        return min(len(values), upto)

    # The part of Tune's controller that schedulers use, with one running trial at a time.

    def get_trials(self) -> list[Trial]:
        return self.trials

    def stop_trial(self, trial: Trial) -> None:
        self.scheduler.on_trial_remove(self, trial)
        self._end(trial, STOPPED)

    def run_all(self, curves: dict[str, list[float]]) -> dict[str, int]:
        """Run trials as Tune does, a new one when none may continue; return the final number of epochs of each."""
        queue = [name for name in curves if name not in self.record.trials or not self.record.trials[name].ended]
        self.exhausted = False
        self.trials = []
        done = dict.fromkeys(queue, 0)
        while True:
            self.exhausted = not queue
            active = any(trial.status in (Trial.PENDING, Trial.RUNNING) for trial in self.trials)
            if queue and not active and not self.scheduler.reserved:
                trial = Trial("trial", stub=True, trial_id=queue.pop(0))
                if trial.trial_id not in self.record.trials:
                    self.record.plan(trial.trial_id, {"optimizer.lr": 0.5}, "random")
                self.trials.append(trial)
                self.scheduler.on_trial_add(self, trial)
            chosen = self.scheduler.choose_trial_to_run(self)
            if chosen is None:
                break
            self._epochs(chosen, curves[chosen.trial_id], done)
        assert all(trial.is_finished() for trial in self.trials), "none is left waiting"
        return {name: len(trial.epochs) for name, trial in self.record.trials.items()}

    def _epochs(self, trial: Trial, values: list[float], done: dict[str, int]) -> None:
        trial.set_status(Trial.RUNNING)
        while trial.status == Trial.RUNNING:
            done[trial.trial_id] += 1
            epoch = done[trial.trial_id]
            result = {"epoch": epoch, "selection_dsc": values[epoch - 1]}
            decision = self.scheduler.on_trial_result(self, trial, result)
            self.record.epoch(trial.trial_id, epoch, {"selection_dsc": values[epoch - 1]})
            if decision == TrialScheduler.PAUSE:
                trial.set_status(Trial.PAUSED)
            if decision == TrialScheduler.STOP or epoch == EPOCHS:
                self.scheduler.on_trial_complete(self, trial, result)
                self._end(trial, COMPLETED if epoch == EPOCHS else STOPPED)

    def _end(self, trial: Trial, state: str) -> None:
        trial.set_status(Trial.TERMINATED)
        self.record.end(trial.trial_id, state)


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


def test_hyperband_has_brackets_that_stop_later_and_keeps_them_at_a_resume(tmp_path: Path) -> None:
    """The same falling values stop at the first rung of their bracket."""
    run = Run(tmp_path, kind="hyperband", grace_epochs=1, reduction_factor=2)
    values = [flat(1 / (1 + number)) for number in range(40)]
    lengths = []
    for number, curve in enumerate(values):
        if number % 10 == 0:
            run.resume()
        lengths.append(run.train(f"t{number}", curve))
    assert set(lengths) == {1, 2, 4, 9}, "three brackets, whose first trials are compared with none"
    assert lengths.count(1) > lengths.count(4), "more trials where more are stopped"
    again = Run(tmp_path / "again", kind="hyperband", grace_epochs=1, reduction_factor=2)
    assert [again.train(f"t{number}", curve) for number, curve in enumerate(values)] == lengths


@pytest.mark.parametrize("resumed", [False, True])
def test_median_stops_below_the_median_of_the_others(resumed: bool, tmp_path: Path) -> None:
    run = Run(tmp_path, kind="median", grace_epochs=2)
    assert run.sweep.scheduler.rungs(EPOCHS) == [], "it compares after every epoch"
    lengths = []
    for number, value in enumerate((0.2, 0.4, 0.6, 0.3, 0.5)):
        if resumed:
            run.resume()
        lengths.append(run.train(f"t{number}", flat(value)))
    assert lengths == [9, 9, 9, 2, 9], "three trials are needed for a median"


def test_top_k_trains_all_to_the_rung_and_the_best_to_the_end(tmp_path: Path) -> None:
    run = Run(tmp_path, kind="top_k", grace_epochs=2, keep=2)
    assert run.sweep.scheduler.rungs(EPOCHS) == [2]
    curves = {f"t{number}": flat(value) for number, value in enumerate((0.5, 0.1, 0.7, 0.3, 0.6))}
    assert list(run.run_all(curves).values()) == [2, 2, 9, 2, 9]


def test_top_k_waits_for_all_again_after_a_resume(tmp_path: Path) -> None:
    run = Run(tmp_path, kind="top_k", grace_epochs=2, keep=1)
    for name, value in (("t0", 0.5), ("t1", 0.6)):
        run.record.plan(name, {"optimizer.lr": 0.5}, "random")
        run.record.start(name)
        for epoch in (1, 2):
            run.record.epoch(name, epoch, {"selection_dsc": value})
    run.resume()
    curves = {"t0": flat(0.5), "t1": flat(0.6), "t2": flat(0.55)}
    assert run.run_all(curves) == {"t0": 2, "t1": 9, "t2": 2}


def test_pasha_opens_no_rung_while_the_ranking_holds(tmp_path: Path) -> None:
    run = Run(tmp_path, kind="pasha", grace_epochs=1, reduction_factor=2)
    assert run.sweep.scheduler.rungs(EPOCHS) == [1, 2, 4, 8]
    curves = {f"t{number}": flat(value) for number, value in enumerate((0.5, 0.1, 0.7, 0.3, 0.6, 0.2, 0.4, 0.65))}
    lengths = run.run_all(curves)
    assert lengths["t2"] == 9, "the best is trained to the end"
    assert max(length for name, length in lengths.items() if name != "t2") == 2
    assert list(lengths.values()).count(1) >= 3


def test_pasha_opens_rungs_while_the_ranking_changes(tmp_path: Path) -> None:
    """Trials that are worse at first and better later."""
    run = Run(tmp_path, kind="pasha", grace_epochs=1, reduction_factor=2)
    curves = {
        f"t{number}": [0.9 - number / 10 + (epoch > 1) * number / 5 for epoch in range(1, 10)] for number in range(8)
    }
    lengths = sorted(run.run_all(curves).values())
    assert lengths[-1] == 9
    assert lengths[-2] > 2


def test_no_scheduler_leaves_a_single_trial_unfinished(tmp_path: Path) -> None:
    for kind in SCHEDULERS:
        run = Run(tmp_path / kind, kind=kind, grace_epochs=2)
        if kind != "pbt":
            assert run.run_all({"t0": flat(0.5)}) == {"t0": 9}


@pytest.mark.parametrize(
    ("differences", "highest"),
    [
        # The curves cross twice: the lead of 0.01 at the lower rung is less than their noise.
        ([-0.05, 0.01, -0.02, -0.03], 1),
        # They cross once, so the order has really changed.
        ([0.01, 0.01, 0.01, -0.03], 2),
        # They cross twice, but the lead was larger than the noise.
        ([-0.05, 0.04, -0.02, -0.03], 2),
    ],
)
def test_pasha_opens_no_rung_for_a_change_within_the_noise(differences: list[float], highest: int) -> None:
    rule = PashaRule([2, 4, 8], 2)
    for name, sign in (("t0", 1), ("t1", 0)):
        for epoch, difference in enumerate(differences, 1):
            rule.report(name, epoch, 0.5 + sign * difference)
    assert rule.highest == highest


def test_pasha_with_a_single_rung_trains_the_best_to_the_end() -> None:
    rule = PashaRule([1], 3)
    assert [rule.report(name, 1, value) for name, value in (("t0", 0.3), ("t1", 0.5))] == ["wait", "wait"]
    assert rule.release(["t0", "t1"], last=False) == ([], []), "further trials may come"
    assert rule.release(["t0", "t1"], last=True) == (["t1"], ["t0"])
    assert rule.report("t1", 2, 0.1) == "continue"
