"""Parts of a sweep without a cluster: the first point, and the end of the training with the default settings."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlflow.tracking import MlflowClient
from ray.tune.experiment import Trial as TuneTrial

from gtvray.config import Config, SweepConfig, with_dotted
from gtvray.data import CachedCase
from gtvray.runtime import SILENT, Cluster, Needs, Node, ResourcePlan
from gtvray.tracking import RunRecorder, read_trials
from gtvray.tracking.trials import STOPPED
from gtvray.training.memory import host_bytes, training_bytes
from gtvray.tuning import FoldCases
from gtvray.tuning import sweep as module
from gtvray.tuning.space import Space
from gtvray.tuning.sweep import _plan, _Runner
from gtvray.tuning.trainable import TrialContext

SMALL, LARGE = [16, 16, 16], [24, 16, 16]
PATCHES: dict[str, Any] = {"training.patch_ijk": {"choice": [SMALL]}}


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
    recorder = RunRecorder(client, tmp_path.name, "sweep", tmp_path / "spool.jsonl", tmp_path / "artifacts")
    context, plan = TrialContext(config, [], tmp_path / "trials"), ResourcePlan(1, 1, Needs(1))
    runner = _Runner(
        sweep,
        Space(sweep.space, config),
        context,
        plan,
        folder=tmp_path,
        recorder=recorder,
        tags={},
        report=None,
        show=SILENT,
    )
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
