"""Folds: which points get a further one, which point wins, and the exported ensemble."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from mlflow.tracking import MlflowClient

from gtvray.config import Config, SweepConfig, load_config, load_sweep
from gtvray.datasets import index_dataset
from gtvray.errors import ConfigError, InputError
from gtvray.inference import Predictor
from gtvray.io import Workspace, read_volume
from gtvray.runtime import SILENT, Cluster
from gtvray.tracking import TrialRecord, read_trials
from gtvray.tracking.trials import COMPLETED, RUNNING, STOPPED, Trial
from gtvray.tuning import SweepJob
from gtvray.tuning.resume import remember_sweep
from gtvray.tuning.searchers.base import WaitForTrial
from gtvray.tuning.searchers.racing import FoldRacing, best_group, is_worse
from gtvray.tuning.searchers.registry import build_searcher
from gtvray.tuning.searchers.repeated import as_points, by_point
from gtvray.tuning.space import Space
from gtvray.tuning.warm_start import earlier_trials

from ..stores import copied_workspace

SEED = "training.seed"
CHOICES: dict[str, Any] = {"optimizer.lr": {"choice": [0.002, 0.01, 0.02, 0.03]}}
# Mean DSC of each point; the last one has a lucky first fold.
QUALITY = {0.002: 0.6, 0.01: 0.7, 0.02: 0.3, 0.03: 0.65}
LUCK = {(0.03, 0): 0.1}


def sweep(**settings: Any) -> SweepConfig:
    given = {"space": CHOICES, "searcher": "grid", "scheduler": {"kind": "none"}, "trials": 20, "folds": 3}
    return SweepConfig.model_validate(given | settings)


def trained(number: int, point: dict[str, Any], origin: str = "grid", state: str = COMPLETED) -> Trial:
    """A trial with twelve cases: folds differ in how hard their cases are, points in their quality."""
    fold, rate = point[SEED], point["optimizer.lr"]
    hardness = np.random.default_rng(fold).normal(0, 0.1, 12)
    noise = np.random.default_rng([number, 7]).normal(0, 0.02, 12)
    dsc = QUALITY[rate] + LUCK.get((rate, fold), 0.0) - 0.1 * fold + hardness + noise
    trial = Trial(f"t{number}", point, state=state, origin=origin)
    if state != RUNNING:
        trial.epochs = {1: {"selection_dsc": 0.0}, 2: {"selection_dsc": float(dsc.mean())}}
        trial.cases = {1: (0.0,) * 12, 2: tuple(dsc)}
    return trial


def race(config: SweepConfig) -> list[Trial]:
    space, trials = Space(config.space, Config()), list[Trial]()
    searcher = build_searcher(config, space, space.default())
    while len(trials) < config.trials:
        proposal = searcher.propose(trials)
        if proposal is None:
            break
        trials.append(trained(len(trials), proposal.point, proposal.origin))
    return trials


def folds_by_rate(trials: list[Trial]) -> dict[float, list[int]]:
    return {group[0].settings["optimizer.lr"]: [trial.settings[SEED] for trial in group] for group in by_point(trials)}


def test_a_point_that_is_significantly_worse_gets_no_further_fold() -> None:
    found = folds_by_rate(race(sweep()))
    assert found[0.02] == [0], "worse on every case of its first fold"
    assert found[0.01] == [0, 1, 2], "the best has all folds"
    assert list(found) == [0.002, 0.01, 0.02, 0.03], "every point had its first fold, the default settings first"


def test_the_best_so_far_has_all_folds_before_a_further_point_starts() -> None:
    trials = race(sweep())
    assert [trial.settings[SEED] for trial in trials[:3]] == [0, 1, 2]
    assert {trial.origin for trial in trials[:3]} == {"default"}


def test_point_with_a_lucky_first_fold_does_not_win() -> None:
    trials = race(sweep())
    lucky = max(trials, key=lambda trial: trial.epochs[2]["selection_dsc"])
    assert lucky.settings == {"optimizer.lr": 0.03, SEED: 0}
    assert best_group(by_point(trials))[0].settings["optimizer.lr"] == 0.01


def test_too_few_cases_decide_nothing() -> None:
    good, bad = trained(0, {"optimizer.lr": 0.01, SEED: 0}), trained(1, {"optimizer.lr": 0.02, SEED: 0})
    assert is_worse([bad], [good])
    assert not is_worse([good], [bad])
    assert not is_worse([good], [good])
    for number in (4, 2):
        for trial in (good, bad):
            trial.cases = {epoch: cases[:number] for epoch, cases in trial.cases.items()}
        assert not is_worse([bad], [good]), f"{number} pairs cannot reach the level"


def test_running_trial_is_waited_for_and_a_stopped_one_gets_no_further_fold() -> None:
    config = sweep(space={"optimizer.lr": {"choice": [0.002]}})
    space = Space(config.space, Config())
    searcher = build_searcher(config, space, space.default())
    point = {"optimizer.lr": 0.002, SEED: 0}
    with pytest.raises(WaitForTrial):
        searcher.propose([trained(0, point, state=RUNNING)])
    assert searcher.propose([trained(0, point, state=STOPPED)]) is None
    proposal = searcher.propose([trained(0, point)])
    assert proposal is not None
    assert proposal.point == point | {SEED: 1}
    assert isinstance(searcher, FoldRacing)


@pytest.mark.parametrize(
    "others",
    [
        {"scheduler": {"kind": "asha"}},
        {"repeats": 2},
        {"target": 0.9},
        {"plateau": 3},
        {"objectives": {"dsc": "max", "peak_mb": "min"}},
        {"space": {"training.seed": {"choice": [0, 1]}}},
    ],
)
def test_settings_that_conflict_with_folds_are_refused(others: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "sweep.yaml"
    path.write_text(yaml.safe_dump({"space": CHOICES, "scheduler": {"kind": "none"}, "folds": 3} | others))
    with pytest.raises(ConfigError, match="folds"):
        load_sweep(path)


def test_importances_rest_on_one_trial_a_point() -> None:
    """Every point is in the record once per fold, or once per seed."""
    folds = race(sweep())
    assert [trial.settings for trial in as_points(folds, sweep())] == [{"optimizer.lr": rate} for rate in QUALITY]
    assert [trial.epochs for trial in as_points(folds, sweep())] == [group[0].epochs for group in by_point(folds)]
    repeats = sweep(folds=1, repeats=2)
    seeds = [trained(number, {"optimizer.lr": 0.01, SEED: number}) for number in range(2)]
    (mean,) = as_points(seeds, repeats)
    assert mean.epochs[2]["selection_dsc"] == pytest.approx(np.mean([t.epochs[2]["selection_dsc"] for t in seeds]))
    assert as_points(folds, sweep(folds=1)) == folds


@pytest.mark.parametrize(("folds", "usable"), [(3, True), (1, False), (4, False)])
def test_a_sweep_with_other_folds_is_no_start(folds: int, usable: bool, tmp_path: Path) -> None:
    remember_sweep(tmp_path / "first", sweep(), Config(), "d1")
    record = TrialRecord(tmp_path / "first")
    for trial in race(sweep(trials=2)):
        record.plan(trial.trial_id, trial.settings, trial.origin)
        record.epoch(trial.trial_id, 1, trial.epochs[2])
        record.end(trial.trial_id, COMPLETED)
    space = Space(sweep().space, Config())
    if usable:
        (found,) = earlier_trials(tmp_path, ["first"], space, "d1", folds)
        assert found.settings == {"optimizer.lr": 0.002}
    else:
        with pytest.raises(InputError, match="could be one of this sweep"):
            earlier_trials(tmp_path, ["first"], space, "d1", folds)


@pytest.mark.slow
@pytest.mark.ray
def test_the_bundle_of_the_best_point_has_the_networks_of_its_folds(
    local_ray: Cluster, client: MlflowClient, phantoms: Path, tmp_path: Path
) -> None:
    config = load_config(
        overrides=[
            "preprocessing.spacing_mm=[8, 8, 8]",
            "network.features=[4, 8, 8]",
            "training.patch_ijk=[16, 16, 16]",
            "training.epochs=1",
            "training.steps_per_epoch=1",
            "training.selection_cases=4",
            "training.precision=fp32",
            "inference.overlap=0",
        ]
    )
    job = SweepJob(
        sweep(trials=3, folds=2, max_concurrent=1),
        config,
        Workspace(copied_workspace(client, tmp_path / "runs").root),
        "folds",
        SILENT,
    )
    project = job.open(phantoms)
    outcome = job.run(project, local_ray)
    trials = read_trials(job.folder)
    assert [trial.settings[SEED] for trial in trials] == [0, 1, 0]
    assert [len(trial.cases[1]) for trial in trials] == [4, 4, 4]
    assert [trial.epochs[1]["selection_dsc"] for trial in trials] == pytest.approx(
        [np.mean(trial.cases[1]) for trial in trials], abs=1e-5
    )
    assert outcome.bundle.info["folds"] == [{"fold": 0, "trial": "t0"}, {"fold": 1, "trial": "t1"}]
    scan = read_volume(index_dataset(phantoms).cases[0].image)
    assert Predictor(outcome.bundle).predict(scan).same_grid(scan)
    assert outcome.bundle.members == 2
    assert outcome.bundle.info["training_data"]["scans"] == sorted(
        project.scans[name] for name in (*project.split.train, *project.split.selection)
    )
    again = SweepJob(job.sweep, config, job.workspace, "folds", SILENT)
    finished = again.finished(again.open(phantoms))
    assert finished is not None, "resuming it has nothing to do"
    assert finished.bundle.digest == outcome.bundle.digest
