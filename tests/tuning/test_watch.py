"""What the driver records of trials, in the sweep's folder and in MLflow, and how it shows progress."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from mlflow.entities import Run
from mlflow.tracking import MlflowClient
from ray import cloudpickle
from ray.exceptions import RayTaskError
from ray.tune.experiment import Trial as TuneTrial

from gtvray.config import SweepConfig
from gtvray.errors import TrainingError
from gtvray.tracking import RunRecorder, TrialRecord, read_trials
from gtvray.training import EPOCH_METRICS
from gtvray.tuning.stopping import SweepStopper
from gtvray.tuning.watch import SweepStatus, Watcher, error_reason, sparkline

EPOCHS = 4


class Watched:
    """A sweep whose trials report to a watcher, without Ray."""

    def __init__(self, client: MlflowClient, folder: Path, rungs: Sequence[int] = (1, 2), **sweep: Any) -> None:
        self.client, self.folder = client, folder
        self.record = TrialRecord(folder)
        self.record.begin_session()
        self.recorder = RunRecorder(client, folder.name, "sweep", folder / "spool.jsonl", folder / "artifacts")
        self.statuses: list[SweepStatus] = []
        space = {"optimizer.lr": {"low": 0.1, "high": 1}}
        self.watcher = Watcher(
            self.record,
            self.recorder,
            tags={"gtvray.data": "d1"},
            epochs=EPOCHS,
            rungs=list(rungs),
            stopper=SweepStopper(SweepConfig.model_validate({"space": space, **sweep}), self.record),
            report=self.statuses.append,
        )

    def start(self, name: str, origin: str = "random") -> TuneTrial:
        trial = TuneTrial("trial", stub=True, trial_id=name)
        if name not in self.record.trials:
            self.record.plan(name, {"optimizer.lr": 0.5}, origin)
        self.watcher.on_trial_start(0, [], trial)
        return trial

    def epoch(self, trial: TuneTrial, epoch: int, dsc: float, notes: str = "", **more: float) -> None:
        result = {**dict.fromkeys(EPOCH_METRICS, 0.5), "selection_dsc": dsc, "epoch": epoch, "notes": notes, **more}
        self.watcher.on_trial_result(0, [], trial, result)

    def runs(self) -> dict[str, Run]:
        assert self.recorder.close(60)
        experiment = self.client.get_run(self.recorder.run_id).info.experiment_id
        runs = self.client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{self.recorder.run_id}'")
        return {run.data.tags["ray.trial_id"]: run for run in runs}

    def history(self, run: Run, name: str = "selection_dsc") -> list[tuple[int, float]]:
        return [(each.step, each.value) for each in self.client.get_metric_history(run.info.run_id, name)]


@pytest.fixture
def watched(client: MlflowClient, tmp_path: Path) -> Watched:
    return Watched(client, tmp_path)


def test_every_trial_has_an_ending_in_record_and_mlflow(watched: Watched, tmp_path: Path) -> None:
    complete, stopped, failed, cut = (watched.start(f"t{number}") for number in range(4))
    for epoch in range(1, EPOCHS + 1):
        watched.epoch(complete, epoch, epoch / 10)
    watched.watcher.on_trial_complete(0, [], complete)
    for epoch in (1, 2):
        watched.epoch(stopped, epoch, 0.1)
    watched.watcher.on_trial_complete(0, [], stopped)
    # Where Tune leaves the error of a trial.
    failed.storage = SimpleNamespace(trial_driver_staging_path=str(tmp_path))
    failed.run_metadata.pickled_error_filename = "error.pkl"
    (tmp_path / "error.pkl").write_bytes(cloudpickle.dumps(OSError("no space left")))
    watched.watcher.on_trial_recover(0, [], failed)
    watched.watcher.on_trial_error(0, [], failed)
    watched.epoch(cut, 1, 0.2)
    watched.watcher._stopper.state, watched.watcher._stopper.reason = "out of budget", "the time budget of 9 s is spent"
    watched.watcher.on_experiment_end([])

    endings = {trial.trial_id: trial.ending for trial in read_trials(tmp_path)}
    assert endings["t0"] == "completed"
    assert endings["t1"] == "stopped at rung 2 (epoch 2)"
    assert endings["t2"] == "failed: OSError: no space left"
    assert read_trials(tmp_path)[2].notes == ["restarted after: OSError: no space left"]
    assert endings["t3"] == "out of budget: the time budget of 9 s is spent"
    runs = watched.runs()
    assert {name: run.info.status for name, run in runs.items()} == {
        "t0": "FINISHED",
        "t1": "KILLED",
        "t2": "FAILED",
        "t3": "KILLED",
    }
    assert {name: run.data.tags["gtvray.ending"] for name, run in runs.items()} == endings
    assert [status.event for status in watched.statuses if status.event != "epoch"] == list(endings.values())
    assert [status.ending_text(4) for status in watched.statuses if status.event != "epoch"][:3] == [
        "trial t0: completed, best DSC 0.400 (1 of 4 trials have ended)",
        "trial t1: stopped at rung 2 (epoch 2), best DSC 0.100 (2 of 4 trials have ended)",
        "trial t2: failed: OSError: no space left, no epoch (3 of 4 trials have ended)",
    ]


def test_median_stopping_names_its_reason_instead_of_a_rung(client: MlflowClient, tmp_path: Path) -> None:
    watched = Watched(client, tmp_path, rungs=[])
    trial = watched.start("t0")
    watched.epoch(trial, 1, 0.1)
    watched.watcher.on_trial_complete(0, [], trial)
    assert [each.ending for each in read_trials(tmp_path)] == ["stopped: below the median of the other trials"]
    watched.recorder.close(60)


def test_a_sweep_that_fails_leaves_its_trials_to_be_continued(watched: Watched, tmp_path: Path) -> None:
    watched.epoch(watched.start("t0"), 1, 0.1)
    watched.record.plan("t1", {"optimizer.lr": 0.2}, "random")
    watched.watcher.on_experiment_end([])
    assert [trial.state for trial in read_trials(tmp_path)] == ["running", "planned"]
    watched.watcher._stopper.state, watched.watcher._stopper.reason = "stopped", "t0 has reached the target of 0.1"
    watched.watcher.on_experiment_end([])
    assert {trial.ending for trial in read_trials(tmp_path)} == {"stopped: t0 has reached the target of 0.1"}
    watched.recorder.close(60)


def test_epochs_that_are_reported_again_are_recorded_once(watched: Watched, tmp_path: Path) -> None:
    trial = watched.start("t0")
    for epoch, dsc in ((1, 0.1), (2, 0.2), (1, 0.1), (2, 0.2), (3, 0.3)):
        watched.epoch(trial, epoch, dsc)
    assert len((tmp_path / "trials.jsonl").read_text().split('"event": "epoch"')) == 1 + 3
    assert [status.epoch for status in watched.statuses] == [1, 2, 3]
    # Trained again, since its checkpoint was lost, with another result.
    watched.epoch(trial, 3, 0.35)
    assert read_trials(tmp_path)[0].curve("selection_dsc") == [(1, 0.1), (2, 0.2), (3, 0.35)]
    (run,) = watched.runs().values()
    assert watched.history(run) == [(1, 0.1), (2, 0.2), (3, 0.3)], "MLflow keeps the first values of an epoch"


def test_params_stay_and_changed_settings_are_metrics(watched: Watched) -> None:
    trial = watched.start("t0")
    watched.epoch(trial, 1, 0.1)
    watched.record.change("t0", 1, {"optimizer.lr": 0.7}, "epoch 1 of t1", ("t1", 1))
    watched.start("t0")
    watched.epoch(trial, 2, 0.2)
    (run,) = watched.runs().values()
    assert run.data.params == {"optimizer.lr": "0.5"}
    assert watched.history(run, "settings.optimizer.lr") == [(2, 0.7)]
    assert (run.data.tags["gtvray.origin"], run.data.tags["gtvray.data"]) == ("random", "d1")


def test_epochs_of_the_trial_that_weights_came_from_are_not_recorded(watched: Watched, tmp_path: Path) -> None:
    trial = watched.start("t0")
    watched.epoch(trial, 1, 0.1)
    watched.record.change("t0", 2, {"optimizer.lr": 0.7}, "epoch 2 of t1", ("t1", 2))
    # Reported before the change, and recorded after it.
    watched.epoch(trial, 2, 0.2)
    # Resumed from a checkpoint with the history of t1.
    for epoch, dsc in ((1, 0.5), (2, 0.6), (3, 0.7)):
        watched.epoch(trial, epoch, dsc)
    assert read_trials(tmp_path)[0].curve("selection_dsc") == [(1, 0.1), (2, 0.2), (3, 0.7)]
    (run,) = watched.runs().values()
    assert watched.history(run) == [(1, 0.1), (2, 0.2), (3, 0.7)]


def test_objectives_and_notes_are_recorded(watched: Watched, tmp_path: Path) -> None:
    trial = watched.start("t0")
    watched.epoch(trial, 1, 0.1, notes="loss not finite: rate lowered", latency_ms=12.5, peak_mb=40.0)
    (stored,) = read_trials(tmp_path)
    assert (stored.epochs[1]["latency_ms"], stored.epochs[1]["peak_mb"]) == (12.5, 40.0)
    assert stored.notes == ["epoch 1: loss not finite: rate lowered"]
    (run,) = watched.runs().values()
    assert watched.history(run, "latency_ms") == [(1, 12.5)]
    assert "rate lowered" in run.data.tags["gtvray.notes"]


def test_status_counts_trials_by_state_and_has_the_curve_of_the_best(watched: Watched) -> None:
    first, second = watched.start("t0"), watched.start("t1")
    for epoch, dsc in ((1, 0.3), (2, 0.1), (3, 0.4)):
        watched.epoch(first, epoch, dsc)
    watched.epoch(second, 1, 0.2)
    status = watched.statuses[-1]
    assert (status.trial, status.epoch, status.dsc, status.best_dsc) == ("t1", 1, 0.2, 0.4)
    assert status.best == ("t0", (0.3, 0.1, 0.4))
    assert (status.started, status.ended, dict(status.states)) == (2, 0, {"running": 2})
    watched.watcher.on_trial_complete(0, [], second)
    assert dict(watched.statuses[-1].states) == {"running": 1, "stopped": 1}
    watched.recorder.close(60)


def test_progress_is_a_line_with_states_best_trial_and_its_curve() -> None:
    states, best = {"completed": 2, "running": 1}, ("t1", (0.1, 0.3, 0.4))
    status = SweepStatus("t2", 3, 8, 0.25, 0.4, 3, 2, 100.0, states=states, best=best)
    assert status.text(6) == ("trial 3/6 (2 completed, 1 running), t2 epoch 3/8, DSC 0.250, best 0.400 of t1 ▁▅█")
    ended = SweepStatus("t2", 3, 8, 0.25, 0.4, 3, 3, 100.0, "stopped at rung 1 (epoch 3)", {"stopped": 1}, best)
    assert "t2 stopped at rung 1 (epoch 3), best" in ended.text(6)


def test_sparkline_has_the_last_values_from_lowest_to_highest() -> None:
    assert sparkline([]) == ""
    assert sparkline([0.5, 0.5]) == "▁▁"
    assert sparkline([9, *range(20)]) == "▁▁▁▂▂▂▃▃▃▄▄▅▅▅▆▆▆▇▇█"


def test_reason_of_an_error_is_one_line_without_a_stack() -> None:
    assert error_reason(ValueError("first\n  second")) == "ValueError: first"
    assert error_reason(KeyboardInterrupt()) == "KeyboardInterrupt"


def test_a_failure_without_its_error_says_where_to_look(watched: Watched, tmp_path: Path) -> None:
    """Tune stores the error of a trial in its folder, which a full disk leaves empty."""
    trial = watched.start("t0")
    trial.storage = SimpleNamespace(trial_driver_staging_path=str(tmp_path))
    trial.run_metadata.pickled_error_filename = "error.pkl"
    watched.watcher.on_trial_recover(0, [], trial)
    watched.watcher.on_trial_error(0, [], trial)
    (stored,) = read_trials(tmp_path)
    assert (stored.state, stored.failures) == ("failed", 1)
    assert stored.reason == "unknown; see error.txt in the trial's folder"
    assert stored.notes == [f"restarted after: {stored.reason}"]
    watched.recorder.close(60)


def test_reason_of_a_wrapped_error_is_the_worker_s_own() -> None:
    cause = TrainingError("the loss is not finite", found="nan", do="lower optimizer.lr")
    wrapped = RayTaskError("step", "Traceback (most recent call last): ...", cause, pid=1, ip="127.0.0.1")
    reason = error_reason(wrapped)
    assert reason.startswith("the loss is not finite; ")
    assert "lower optimizer.lr" in reason
    assert "Traceback" not in reason
    assert "\n" not in reason
    assert error_reason(RayTaskError("step", "...", OSError("disk"), pid=1, ip="127.0.0.1")) == "OSError: disk"
