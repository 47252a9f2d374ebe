"""A training from its data to its bundle, on a real cluster and in a real MLflow."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gtvray.cli.train import FoldProgress, outcome_text
from gtvray.config import Config, SweepConfig, with_dotted
from gtvray.crossval import TrainJob, TrainRequest
from gtvray.datasets import index_dataset, read_label
from gtvray.errors import ConfigError, InputError
from gtvray.evaluation import MeanPositionBaseline, score_cases
from gtvray.inference import Predictor
from gtvray.io import Workspace, read_json, read_volume, write_json
from gtvray.models import Bundle
from gtvray.runtime import SILENT, Cluster
from gtvray.training import describe_plan
from gtvray.tuning import SweepJob

pytestmark = [
    pytest.mark.filterwarnings(r"ignore:`use_\w+` is deprecated"),
    # Raised by SQLAlchemy and MLflow when a store is opened.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


def make_job(config: Config, data: Path, folder: Path, **request: Any) -> TrainJob:
    show = FoldProgress({}, quiet=True)
    asked = TrainRequest(with_dotted(config, {"training.epochs": 1}), data, **request)
    return TrainJob(asked, Workspace(folder), "train-test", show, show.folds)


@pytest.mark.slow
@pytest.mark.ray
def test_folds_are_scored_like_an_evaluation_and_bundled(
    local_ray: Cluster, phantoms: Path, config: Config, tmp_path: Path
) -> None:
    job = make_job(config, phantoms, tmp_path, fold="all", folds=2)
    project, folds = job.open()
    outcome = job.run(project, folds, local_ray)
    assert (outcome.failures, outcome.delivered) == ({}, True)

    rows = outcome.validation.rows()
    assert [(row["fold"], row["case"]) for row in rows] == [
        (fold.name, case.case_id) for fold in folds for case in fold.validation_cases
    ]
    own = Bundle.load(folds[0].folder / "bundle")
    baseline = MeanPositionBaseline.fit([read_label(case, read_volume(case.image)) for case in folds[0].train_cases])
    expected = score_cases(Predictor(own, threads=1), folds[0].validation_cases, tmp_path / "masks", baseline)
    found = outcome.validation.folds[0].cases
    assert [(e.score, e.baseline) for e in found] == [(e.score, e.baseline) for e in expected]

    bundle = Bundle.load(outcome.bundle.folder)
    assert bundle.members == 2
    assert bundle.inference == outcome.validation.inference
    first, second = (bundle.build_network(number).state_dict() for number in range(2))
    assert all(tensor.equal(own.build_network().state_dict()[name]) for name, tensor in first.items())
    assert not all(tensor.equal(second[name]) for name, tensor in first.items())
    assert [(fold["fold"], fold["seed"], fold["epoch"]) for fold in bundle.info["folds"]] == [
        ("fold-0", 0, 1),
        ("fold-1", 1, 1),
    ]
    assert bundle.info["training_data"]["digest"] == project.fingerprint.digest
    assert bundle.info["mlflow_run"] == outcome.run_id

    result = outcome_text(outcome, tmp_path)
    assert f"promote it: gtvray promote {bundle.folder} --data {phantoms}" in result
    assert ["all", str(len(rows))] in [line.split()[:2] for line in result.splitlines()]

    run = job.record.client.get_run(outcome.run_id)
    assert (run.info.status, run.data.tags["gtvray.digest"]) == ("FINISHED", bundle.digest)
    assert run.data.metrics == pytest.approx(bundle.info["metrics"])
    stored = {file.path for file in job.record.client.list_artifacts(outcome.run_id, "bundle")}
    assert {"bundle/weights-0.safetensors", "bundle/weights-1.safetensors"} <= stored
    scores = json.loads((job.folder / "scores.json").read_text())
    assert [row["case"] for row in scores["cases"]] == [row["case"] for row in rows]
    assert all(Path(picture).is_file() for picture in scores["pictures"])
    assert all(f"| {row['case']} |" in (job.folder / "scores.md").read_text() for row in rows)


def test_training_resumes_with_its_own_settings_and_data_only(phantoms: Path, config: Config, tmp_path: Path) -> None:
    job = make_job(config, phantoms, tmp_path, fold=1, folds=3)
    project, folds = job.open()
    assert [fold.name for fold in folds] == ["fold-1"]
    assert "training.patch_ijk: 16 x 16 x 16 (given)" in describe_plan(job.plan(project))
    job.request.save(job.folder, project.fingerprint.digest)
    again = TrainJob.resumed("train-test", job.workspace, job.show, job.report)
    assert (again.request, again.expected) == (job.request, project.fingerprint.digest)
    assert again.open()[1] == folds
    path = job.folder / "run.json"
    write_json(path, {**read_json(path), "fingerprint": "other"})
    with pytest.raises(InputError, match="differ from those that the training was started with"):
        TrainJob.resumed("train-test", job.workspace, job.show, job.report).open()
    write_json(path, {**read_json(path), "schema_version": 99})
    with pytest.raises(InputError, match="another version of gtvray"):
        TrainJob.resumed("train-test", job.workspace, job.show, job.report)


def test_resumed_training_takes_settings_that_do_not_affect_its_result(
    phantoms: Path, config: Config, tmp_path: Path
) -> None:
    job = make_job(config, phantoms, tmp_path)
    job.request.save(job.folder, "fingerprint")

    def resumed(changes: dict[str, Any]) -> TrainJob:
        return TrainJob.resumed("train-test", job.workspace, job.show, job.report, changes)

    uri = "http://mlflow:5000"
    assert resumed({"tracking.uri": uri}).request.config == with_dotted(job.request.config, {"tracking.uri": uri})
    with pytest.raises(InputError, match="cannot be changed") as caught:
        resumed({"optimizer.lr": 0.5, "tracking.uri": uri})
    assert caught.value.fields["where"] == "train-test, optimizer.lr"


def test_trials_have_no_time_budget(phantoms: Path, config: Config, tmp_path: Path) -> None:
    sweep = SweepConfig.model_validate({"space": {"optimizer.lr": {"low": 1e-3, "high": 1e-2}}})
    budgeted = with_dotted(config, {"training.time_budget_s": 60.0})
    with pytest.raises(ConfigError, match="no time budget of their own"):
        SweepJob(sweep, budgeted, Workspace(tmp_path), "sweep", FoldProgress({}, quiet=True)).open(phantoms)


def test_more_folds_than_cases_are_refused(phantoms: Path, config: Config, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="invalid number of folds"):
        make_job(config, phantoms, tmp_path, fold="all", folds=len(index_dataset(phantoms).cases)).open()


def test_a_name_that_is_given_again_continues_its_training_only(
    phantoms: Path, config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = Workspace(tmp_path)
    request = TrainRequest(config, phantoms)
    new = TrainJob.started(request, workspace, "train-again", SILENT, lambda _: None)
    assert new.expected is None
    request.save(new.folder, "fingerprint")
    monkeypatch.chdir(phantoms.parent)
    relative = TrainRequest(config, Path(phantoms.name))
    assert TrainJob.started(relative, workspace, "train-again", SILENT, lambda _: None).expected == "fingerprint"
    # As for sweeps, only settings that affect the result must be the same.
    moved = with_dotted(config, {"tracking.uri": "http://mlflow:5000", "training.cpus_per_worker": 3}, "test")
    job = TrainJob.started(TrainRequest(moved, phantoms), workspace, "train-again", SILENT, lambda _: None)
    assert (job.expected, job.request.config) == ("fingerprint", moved)
    with pytest.raises(InputError, match="other data or settings"):
        TrainJob.started(TrainRequest(moved, phantoms, fold=1), workspace, "train-again", SILENT, lambda _: None)
    other = TrainRequest(with_dotted(config, {"optimizer.lr": 0.5}, "test"), phantoms)
    with pytest.raises(InputError, match="other data or settings"):
        TrainJob.started(other, workspace, "train-again", SILENT, lambda _: None)
