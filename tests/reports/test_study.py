"""Reports are written atomically and recorded once in MLflow."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from gtvray.datasets import Dataset, read_label
from gtvray.errors import InputError, NotFoundError
from gtvray.evaluation import MeanPositionBaseline
from gtvray.io import read_volume
from gtvray.models import Bundle
from gtvray.reports import Study, record_report, study

from ..bundles import random_bundle
from ..pages import assert_self_contained


def bundle(tmp_path: Path, seed: int = 1, **info: object) -> Bundle:
    return random_bundle(tmp_path / f"bundle-{seed}", seed, info)


@pytest.fixture
def report(balls: Dataset, tmp_path: Path) -> Path:
    """A report of one model."""
    made = Study(balls, "data-1", {"one": bundle(tmp_path)}, tmp_path / "out")
    made.score("one", 1, threads=1)
    return made.write()[1]


def test_report_has_models_baseline_and_worst_cases(balls: Dataset, tmp_path: Path) -> None:
    labels = (read_label(case, read_volume(case.image)) for case in balls.cases)
    bundles = {"one": bundle(tmp_path), "two": bundle(tmp_path, 2, mlflow_run="r", training_data={"digest": "t"})}
    made = Study(balls, "data-1", bundles, tmp_path / "out")
    done: list[tuple[int, int]] = []
    made.score("one", 1, threads=1, baseline=MeanPositionBaseline.fit(labels), report=lambda *at: done.append(at))
    made.score("two", 2, threads=1)
    found, folder = made.write()
    assert done == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert list(found.scores) == ["one", "two", "mean position"]
    assert [(model.looks, model.training_run, model.trained_on) for model in found.models] == [
        (1, None, None),
        (2, "r", "t"),
    ]
    assert sorted(file.name for file in folder.iterdir()) == [
        *["cases.csv", "manifest.json", "pictures", "report.html", "scores.json", "scores.md"]
    ]
    assert json.loads((folder / "scores.json").read_text()) == json.loads(json.dumps(found.as_dict()))
    assert len(found.worst) == 6
    for case in found.worst:
        assert (folder / case.picture).read_bytes().startswith(b"\x89PNG")
    text = (folder / "report.html").read_text()
    assert_self_contained(text)
    for content in (text, (folder / "scores.json").read_text(), (folder / "cases.csv").read_text()):
        assert str(tmp_path) not in content
        assert str(balls.root.parent) not in content
    for one in bundles.values():
        assert len(list((tmp_path / "out" / "masks" / one.digest[:12]).iterdir())) == 4


def test_one_bundle_under_two_names_is_refused_before_scoring(balls: Dataset, tmp_path: Path) -> None:
    one = bundle(tmp_path)
    with pytest.raises(InputError, match="same model twice"):
        Study(balls, "data-1", {"a": one, "b": one}, tmp_path / "out")
    with pytest.raises(InputError, match="reserved for the baseline"):
        Study(balls, "data-1", {"mean position": one}, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_interrupted_report_keeps_the_previous_one_and_a_complete_one_replaces_it(
    balls: Dataset, tmp_path: Path, report: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {file: file.read_bytes() for file in report.rglob("*") if file.is_file()}

    def interrupted(*_: object) -> str:
        raise KeyboardInterrupt

    again = Study(balls, "data-1", {"two": bundle(tmp_path, 2)}, tmp_path / "out")
    again.score("two", 1, threads=1)
    with monkeypatch.context() as patched:
        patched.setattr(study, "report_page", interrupted)
        with pytest.raises(KeyboardInterrupt):
            again.write()
    assert {file: file.read_bytes() for file in report.rglob("*") if file.is_file()} == before
    assert list(tmp_path.rglob(".partial-*")) == []
    again.write()
    assert {file for file in before if file.parent.name == "pictures" and file.exists()} == set()


@pytest.mark.slow
def test_recording_a_report_again_changes_nothing(client: MlflowClient, report: Path, artifacts: Path) -> None:
    first = record_report(client, "once", report, artifacts)
    assert record_report(client, "once", report, artifacts) == first
    experiment = client.get_experiment_by_name("once")
    (run,) = client.search_runs([experiment.experiment_id])
    content = json.loads((report / "scores.json").read_text())
    assert run.info.run_id == first["one"]
    assert run.info.status == "FINISHED"
    tags = run.data.tags
    assert (tags["gtvray.data"], tags["gtvray.digest"]) == ("data-1", content["models"][0]["digest"])
    assert "mlflow.parentRunId" not in tags
    assert "not a medical device" in tags["mlflow.note.content"]
    summary = content["models"][0]["summary"]
    assert run.data.metrics["hd95_mm_mean"] == pytest.approx(summary["hd95_mm"]["mean"])
    assert run.data.metrics["dsc_low"] == pytest.approx(summary["dsc"]["interval"][0])
    assert run.data.metrics["missed"] == summary["missed"]
    assert len(client.get_metric_history(run.info.run_id, "dsc_mean")) == 1
    sent = {entry.path for entry in client.list_artifacts(run.info.run_id, "evaluation")}
    assert {"evaluation/report.html", "evaluation/scores.json", "evaluation/cases.csv"} <= sent


@pytest.mark.slow
def test_run_is_nested_below_the_training_of_its_model(
    balls: Dataset, tmp_path: Path, client: MlflowClient, artifacts: Path
) -> None:
    experiment = client.create_experiment("below", artifact_location=artifacts.as_uri())
    training = client.create_run(experiment).info.run_id
    bundles = {"here": bundle(tmp_path, 1, mlflow_run=training), "elsewhere": bundle(tmp_path, 2, mlflow_run="f" * 32)}
    made = Study(balls, "data-1", bundles, tmp_path / "out")
    for name in bundles:
        made.score(name, 1, threads=1)
    runs = record_report(client, "below", made.write()[1], artifacts)
    here, elsewhere = (client.get_run(runs[name]).data.tags for name in bundles)
    assert here["mlflow.parentRunId"] == here["gtvray.training_run"] == training
    assert "mlflow.parentRunId" not in elsewhere
    assert elsewhere["gtvray.training_run"] == "f" * 32


def test_folder_without_a_report_is_refused(client: MlflowClient, tmp_path: Path, artifacts: Path) -> None:
    with pytest.raises(NotFoundError):
        record_report(client, "none", tmp_path, artifacts)
    (tmp_path / "scores.json").write_text('{"models": [{"name": "a"}], "at": "2026-01-01T00:00:00+00:00"}')
    with pytest.raises(InputError, match="no report"):
        record_report(client, "none", tmp_path, artifacts)
    assert client.get_experiment_by_name("none") is None


def test_pictures_have_names_that_mlflow_sends_back() -> None:
    assert study._in_uri("case_1 é'") == "case_1 é'"
    one, two = study._in_uri("a%20b"), study._in_uri("a#20b")
    assert one != two
    assert not set("%#?") & set(one + two)
