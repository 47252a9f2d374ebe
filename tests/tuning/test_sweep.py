"""Whole sweeps on a real cluster, recorded in a real MLflow."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from gtvray.config import Choice, Config, SweepConfig, with_dotted
from gtvray.data import CachedCase
from gtvray.errors import ConfigError, ResourceError, TrainingError
from gtvray.models import Checkpoint
from gtvray.runtime import Cluster
from gtvray.tracking import RunRecorder, read_trials
from gtvray.training import fit
from gtvray.tuning import FoldCases, SweepResult, SweepStatus, run_sweep

pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings(r"ignore:`use_\w+` is deprecated")]
SPACE: dict[str, Any] = {
    "optimizer.lr": {"low": 1e-3, "high": 1e-2, "log": True},
    "training.patch_ijk": {"choice": [[16, 16, 16], [24, 16, 16]]},
}
START = {"optimizer.lr": 0.004, "training.patch_ijk": [24, 16, 16]}


class Sweep:
    """Everything that a sweep needs; `run` runs it, and `children` are the MLflow runs of its trials."""

    def __init__(
        self, cluster: Cluster, client: MlflowClient, config: Config, cases: list[CachedCase], folder: Path
    ) -> None:
        self.cluster, self.client, self.config, self.cases, self.folder = cluster, client, config, cases, folder
        self.recorder = RunRecorder(client, folder.name, "sweep", folder / "spool.jsonl", folder / "artifacts")
        self.statuses: list[SweepStatus] = []

    def run(self, config: Config | None = None, **sweep: Any) -> SweepResult:
        try:
            return run_sweep(
                SweepConfig.model_validate({"space": SPACE, **sweep}),
                config or self.config,
                [FoldCases(self.cases[:4], self.cases[4:])],
                cluster=self.cluster,
                recorder=self.recorder,
                folder=self.folder,
                tags={"gtvray.data": "d1"},
                report=self._hear,
            )
        finally:
            assert self.recorder.close(60)

    def _hear(self, status: SweepStatus) -> None:
        # On a busy machine a trial takes long to start, and that is reported too.
        if "start" not in status.event:
            self.statuses.append(status)

    @property
    def children(self) -> dict[str, Run]:
        experiment = self.client.get_run(self.recorder.run_id).info.experiment_id
        runs = self.client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{self.recorder.run_id}'")
        found = {run.data.tags["ray.trial_id"]: run for run in runs}
        assert len(found) == len(runs)
        return found

    def history(self, run: Run, name: str) -> list[tuple[int, float]]:
        return [(metric.step, metric.value) for metric in self.client.get_metric_history(run.info.run_id, name)]


@pytest.fixture
def sweep(local_ray: Cluster, client: MlflowClient, config: Config, cases: list[CachedCase], tmp_path: Path) -> Sweep:
    return Sweep(local_ray, client, config, cases, tmp_path)


def test_sweep_is_recorded_completely(sweep: Sweep, tmp_path: Path) -> None:
    result = sweep.run(trials=3, max_concurrent=1, scheduler={"kind": "none"}, start=[START])
    assert sorted(trial.trial_id for trial in result.trials) == ["t0", "t1", "t2"]
    assert (len(result.trials), result.failed) == (3, 0)
    assert [trial.best_dsc for trial in result.trials] == sorted((t.best_dsc for t in result.trials), reverse=True)
    runs, recorded = sweep.children, {trial.trial_id: trial for trial in read_trials(sweep.folder)}
    assert sorted(runs) == sorted(trial.trial_id for trial in result.trials)
    assert sweep.client.get_run(sweep.recorder.run_id).data.params["training.steps_per_epoch"] == "1"
    for trial in result.trials:
        run = runs[trial.trial_id]
        assert run.data.params == {key: str(value) for key, value in trial.point.items()}
        assert (run.info.status, run.data.tags["gtvray.data"]) == ("FINISHED", "d1")
        assert (run.data.tags["gtvray.ending"], run.data.tags["gtvray.origin"]) == ("completed", trial.origin)
        for name in ("train_loss", "selection_dsc", "lr", "seconds"):
            assert [step for step, _ in sweep.history(run, name)] == [1, 2]
        assert max(value for _, value in sweep.history(run, "selection_dsc")) == trial.best_dsc
        assert Checkpoint.load(trial.best_checkpoint).meta["network"]["features"] == [4, 8, 8]
        assert (recorded[trial.trial_id].settings, recorded[trial.trial_id].state) == (trial.point, "completed")
        assert recorded[trial.trial_id].curve("selection_dsc") == sweep.history(run, "selection_dsc")
        assert result.config_of(trial).training.patch_ijk == tuple(trial.point["training.patch_ijk"])
    assert [(status.trial, status.started, status.ended, status.epoch, status.event) for status in sweep.statuses] == [
        (f"t{number}", number + 1, number + (event != "epoch"), epoch, event)
        for number in range(3)
        for epoch, event in ((1, "epoch"), (2, "epoch"), (2, "completed"))
    ]
    by_id = {trial.trial_id: trial for trial in result.trials}
    assert [by_id[name].origin for name in ("t0", "t1", "t2")] == ["default", "given", "start"]
    assert by_id["t1"].point == START
    # The default patch is larger than every case, and no choice of the space.
    assert by_id["t0"].point == {"optimizer.lr": 0.002, "training.patch_ijk": [16, 16, 16]}
    assert not (sweep.folder / "tune").exists(), "Tune's own state is not needed any more"
    # A reused actor trains exactly like a new process.
    last = next(trial for trial in result.trials if trial.trial_id == sweep.statuses[-1].trial)
    alone = list(fit(result.config_of(last), sweep.cases[:4], sweep.cases[4:], tmp_path / "alone"))
    output = [value for _, value in sweep.history(runs[last.trial_id], "train_loss")]
    assert output == pytest.approx([report.train_loss for report in alone], rel=1e-5)


@pytest.mark.slow
def test_asha_stops_the_worse_trials(sweep: Sweep) -> None:
    """The default settings and the first rate learn; the others, with a negligible learning rate, do not."""
    rates = [0.02, 1e-9, 1e-10]
    longer = with_dotted(sweep.config, {"training.epochs": 8, "training.steps_per_epoch": 4})
    result = sweep.run(
        longer,
        trials=4,
        searcher="random",
        max_concurrent=1,
        space={"optimizer.lr": Choice(choice=[0.002, *rates]).model_dump()},
        start=[{"optimizer.lr": rate} for rate in rates],
        scheduler={"kind": "asha", "grace_epochs": 2, "reduction_factor": 2},
    )
    assert {status.started - status.ended for status in sweep.statuses} == {0, 1}, "one trial at a time"
    assert [trial.settings["optimizer.lr"] for trial in result.ended] == [0.002, *rates], "in the order they are given"
    stopped = [trial for trial in result.ended if trial.state == "stopped"]
    assert {trial.trial_id for trial in stopped} >= {"t3"}
    for trial in stopped:
        rung = {2: 1, 4: 2}[len(trial.epochs)]
        assert trial.ending == f"stopped at rung {rung} (epoch {len(trial.epochs)})"
    assert result.best.epochs == 8
    for trial in result.ended:
        run = sweep.children[trial.trial_id]
        assert [step for step, _ in sweep.history(run, "train_loss")] == list(range(1, len(trial.epochs) + 1))
        assert run.info.status == ("FINISHED" if trial.state == "completed" else "KILLED")
        assert run.data.tags["gtvray.ending"] == trial.ending


@pytest.mark.slow
def test_a_trial_of_two_workers(sweep: Sweep) -> None:
    two = with_dotted(sweep.config, {"training.num_workers": 2})
    result = sweep.run(two, trials=1, scheduler={"kind": "none"}, start=[START])
    (trial,) = result.trials
    assert (trial.epochs, trial.origin) == (2, "default")
    assert [step for step, _ in sweep.history(sweep.children[trial.trial_id], "train_loss")] == [1, 2]


@pytest.mark.slow
def test_sweep_without_a_successful_trial_reports_the_reason(sweep: Sweep) -> None:
    sweep.cases = [CachedCase(case.case_id, case.folder / "gone", case.meta) for case in sweep.cases]
    with pytest.raises(TrainingError, match="no trial completed an epoch") as caught:
        sweep.run(trials=2)
    assert len(str(caught.value).splitlines()) <= 5
    assert "gone" in caught.value.fields["found"]
    assert {run.info.status for run in sweep.children.values()} == {"FAILED"}
    for trial in read_trials(sweep.folder):
        assert (trial.state, trial.epochs) == ("failed", {})
        assert "gone" in str(trial.reason)
        assert trial.notes[0].startswith("restarted after: ")


def test_invalid_sweep_is_refused_before_any_trial(sweep: Sweep) -> None:
    with pytest.raises(ConfigError):
        sweep.run(base={"training.patch_ijk": [8, 8, 8]}, space={"optimizer.lr": {"low": 0.1, "high": 0.2}})
    with pytest.raises(ResourceError):
        sweep.run(base={"training.cpus_per_worker": 64})
    assert sweep.children == {}


@pytest.mark.slow
def test_top_k_pauses_trials_and_continues_the_best(sweep: Sweep) -> None:
    longer = with_dotted(sweep.config, {"training.epochs": 4})
    scheduler = {"kind": "top_k", "grace_epochs": 1, "keep": 1}
    result = sweep.run(longer, trials=4, max_concurrent=2, scheduler=scheduler)
    assert sorted(len(trial.epochs) for trial in result.ended) == [1, 1, 1, 4]
    assert sorted(trial.state for trial in result.ended) == ["completed", "stopped", "stopped", "stopped"]
    first = {trial.trial_id: trial.curve("selection_dsc")[0][1] for trial in result.ended}
    (kept,) = [trial for trial in result.ended if trial.state == "completed"]
    assert first[kept.trial_id] == max(first.values())
    assert {trial.ending for trial in result.ended if trial != kept} == {"stopped at rung 1 (epoch 1)"}
    for trial in result.ended:
        history = sweep.history(sweep.children[trial.trial_id], "train_loss")
        assert [step for step, _ in history] == list(range(1, len(trial.epochs) + 1))


@pytest.mark.slow
def test_pbt_exploits_real_checkpoints(sweep: Sweep) -> None:
    """Trials with a negligible learning rate take over the weights of the one that learns, with a changed rate."""
    longer = with_dotted(sweep.config, {"training.epochs": 6, "training.steps_per_epoch": 8, "optimizer.lr": 0.02})
    result = sweep.run(
        longer,
        trials=3,
        searcher="random",
        space={"optimizer.lr": {"low": 1e-9, "high": 0.05, "log": True}},
        start=[{"optimizer.lr": 1e-9}, {"optimizer.lr": 1e-8}],
        scheduler={"kind": "pbt", "grace_epochs": 2},
    )
    exploits = [(trial, *change) for trial in result.ended for change in trial.exploits]
    assert exploits, "no trial took over another"
    for trial, _, settings, text in exploits:
        source = re.fullmatch(r"epoch (\d+) of (t\d), with optimizer.lr=.*", text)
        assert source is not None
        assert source[2] != trial.trial_id
        assert 1e-9 <= settings["optimizer.lr"] <= 0.05
        run = sweep.children[trial.trial_id]
        assert "settings.optimizer.lr" in run.data.metrics, "a changed setting is a metric"
    assert all(trial.state == "completed" for trial in result.ended)
    # The weights of the best are those of its checkpoint, whatever trial they come from.
    meta = Checkpoint.load(result.best.best_checkpoint).meta
    assert meta["best_dsc"] == pytest.approx(result.best.best_dsc)
