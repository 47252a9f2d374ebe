"""Parts of a sweep without a cluster: the first point, and the end of the training with the default settings."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlflow.tracking import MlflowClient
from ray.tune.experiment import Trial as TuneTrial

from gtvray.config import Config, SchedulerConfig, SweepConfig, with_dotted
from gtvray.data import CachedCase
from gtvray.errors import ResourceError
from gtvray.runtime import SILENT, Cluster, Needs, Node, ResourcePlan
from gtvray.tracking import RunRecorder, TrialRecord, read_trials
from gtvray.tracking.trials import COMPLETED, FAILED, OUT_OF_BUDGET, STOPPED
from gtvray.training.checkpoints import checkpoint_path
from gtvray.training.memory import host_bytes, training_bytes
from gtvray.tuning import FoldCases
from gtvray.tuning import sweep as module
from gtvray.tuning.pins import pin_checkpoint
from gtvray.tuning.searchers.base import NoSearcher
from gtvray.tuning.space import Space
from gtvray.tuning.sweep import _own_folder, _plan, _require_population, _Runner
from gtvray.tuning.trainable import TrialContext

SMALL, LARGE = [16, 16, 16], [24, 16, 16]
PATCHES: dict[str, Any] = {"training.patch_ijk": {"choice": [SMALL]}}


def make_runner(sweep: SweepConfig, config: Config, client: MlflowClient, folder: Path) -> tuple[_Runner, RunRecorder]:
    recorder = RunRecorder(client, folder.name, "sweep", folder / "spool.jsonl", folder / "artifacts")
    runner = _Runner(
        sweep,
        Space(sweep.space, config),
        TrialContext(config, [], folder / "trials"),
        ResourcePlan(1, 1, Needs(1)),
        folder=folder,
        recorder=recorder,
        tags={},
        report=None,
        show=SILENT,
    )
    return runner, recorder


@pytest.mark.parametrize(("memory_of", "patch"), [(LARGE, LARGE), (SMALL, SMALL)])
def test_default_settings_that_do_not_fit_into_memory_are_replaced(
    memory_of: list[int],
    patch: list[int],
    config: Config,
    cases: list[CachedCase],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The memory that is planned for a trial is that of the point which the first one has."""
    base = with_dotted(config, {"training.patch_ijk": LARGE})
    memory = training_bytes(with_dotted(config, {"training.patch_ijk": memory_of}))
    asked: list[Config] = []
    monkeypatch.setattr(module, "worker_memory_bytes", lambda settings, *_: asked.append(settings) or memory)
    node = Node(cpus=8, gpus=0, memory_bytes=1 << 40)
    sweep = SweepConfig.model_validate({"space": PATCHES})
    folds = [FoldCases(cases[:4], cases[4:])]
    default, plan = _plan(sweep, Space(sweep.space, base), folds, Cluster("local", True, (node,)), SILENT)
    assert list(default["training.patch_ijk"]) == patch
    assert [list(settings.training.patch_ijk) for settings in asked] == [SMALL], "once, for a point of the space"
    assert plan.needs.memory_bytes == host_bytes(with_dotted(config, {"training.patch_ijk": patch}))


def test_a_budget_that_ends_during_the_default_settings_ends_their_trial(
    client: MlflowClient, config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = SweepConfig.model_validate({"space": PATCHES, "time_budget_s": 1e-9})
    runner, recorder = make_runner(sweep, config, client, tmp_path)
    runner.record.plan("t0", {}, "default")
    runner.record.end("t0", STOPPED)

    def run(trainable: Any, *, callbacks: list[Any], stop: Callable[..., Any], **_: Any) -> None:
        """Start the trial and stop it, as Tune does when the stopper says so."""
        callbacks[0].on_trial_start(0, [], TuneTrial("trial", stub=True, trial_id="t0"))
        assert stop.stop_all()  # type: ignore[attr-defined]
        callbacks[0].on_experiment_end([])

    monkeypatch.setattr(module.tune, "run", run)
    monkeypatch.setattr(module.tune, "with_parameters", lambda trainable, **_: trainable)
    runner.finish_default()
    assert [trial.ending for trial in read_trials(tmp_path)] == ["out of budget: the time budget of 1e-09 s is spent"]
    assert recorder.close(60)
    run_of_trial = client.get_run(recorder.trial_run_id("t0"))
    assert run_of_trial.info.status == "KILLED"


@pytest.mark.parametrize("state", [None, COMPLETED, OUT_OF_BUDGET, FAILED])
def test_default_settings_that_the_scheduler_did_not_stop_are_not_trained_further(
    state: str | None, client: MlflowClient, config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner, _ = make_runner(SweepConfig.model_validate({"space": PATCHES}), config, client, tmp_path)
    if state is not None:
        runner.record.plan("t0", {}, "default")
        runner.record.end("t0", state)
    # Of a later trial the scheduler's decision stands.
    runner.record.plan("t1", {}, "random")
    runner.record.end("t1", STOPPED if state is not None else COMPLETED)
    monkeypatch.setattr(module.tune, "run", lambda *_, **__: pytest.fail("a trial was started"))
    runner.finish_default()


def test_a_killed_exploit_is_completed_before_the_trials_continue(
    client: MlflowClient, config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without it, a trial would continue with its own weights and the settings of the other trial."""
    space, pbt = {"optimizer.lr": {"low": 0.1, "high": 1}}, {"kind": "pbt", "grace_epochs": 1}
    sweep = SweepConfig.model_validate({"trials": 2, "space": space, "scheduler": pbt})
    record = TrialRecord(tmp_path)
    for name in ("t0", "t1"):
        record.plan(name, {"optimizer.lr": 0.5}, "random")
        record.start(name)
        record.epoch(name, 1, {"selection_dsc": 0.5})
        checkpoint = checkpoint_path(tmp_path / "trials" / name, 1)
        checkpoint.mkdir(parents=True)
        (checkpoint / "weights").write_text(name)
    pin_checkpoint(tmp_path / "trials" / "t0", 1)
    record.change("t1", 1, {"optimizer.lr": 0.6}, "epoch 1 of t0", ("t0", 1))
    started: list[dict[str, Any]] = []
    monkeypatch.setattr(module.tune, "with_parameters", lambda trainable, **_: trainable)
    monkeypatch.setattr(module.tune, "run", lambda *_, **options: started.append(options))
    runner, _ = make_runner(sweep, config, client, tmp_path)
    runner.search(NoSearcher())
    weights = [(checkpoint_path(tmp_path / "trials" / name, 1) / "weights").read_text() for name in ("t0", "t1")]
    assert weights == ["t0", "t0"]
    assert [options["search_alg"].concurrent for options in started] == [2], "all of a population exist at once"


def test_a_sweep_without_anything_to_run_starts_no_trial(
    client: MlflowClient, config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = TrialRecord(tmp_path)
    record.plan("t0", {"training.patch_ijk": SMALL}, "default")
    record.end("t0", COMPLETED)
    monkeypatch.setattr(module.tune, "run", lambda *_, **__: pytest.fail("Tune was started"))
    runner, _ = make_runner(SweepConfig.model_validate({"trials": 1, "space": PATCHES}), config, client, tmp_path)
    runner.search(NoSearcher())


def test_a_population_with_several_workers_must_fit_at_once(config: Config) -> None:
    """Trials with one worker take turns; Tune does not know of the workers that a trial starts by itself."""
    sweep = SweepConfig.model_validate(
        {"trials": 4, "space": {"optimizer.lr": {"low": 0.1, "high": 1}}, "scheduler": {"kind": "pbt"}}
    )
    several = with_dotted(config, {"training.num_workers": 2})
    with pytest.raises(ResourceError, match="does not fit on this cluster at once") as caught:
        _require_population(sweep, several, 3)
    assert caught.value.fields["expected"] == "at most 3 with 2 workers each"
    _require_population(sweep, several, 4)
    _require_population(sweep, config, 1)
    _require_population(sweep.model_copy(update={"scheduler": SchedulerConfig(kind="none")}), several, 1)


def test_the_folder_of_tune_is_kept_only_if_it_has_the_error_of_a_trial(tmp_path: Path) -> None:
    folder = tmp_path / "tune"
    (folder / "of an earlier session").mkdir(parents=True)
    with _own_folder(folder):
        assert not folder.exists()
        folder.mkdir()
    assert not folder.exists()
    with _own_folder(folder):
        (folder / "t0").mkdir(parents=True)
        (folder / "t0" / "error.txt").write_text("a stack")
    assert (folder / "t0" / "error.txt").is_file()
