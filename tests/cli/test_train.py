"""`gtvray train` on the command line: the ensemble and its promotion, kills, failures and resuming."""

from __future__ import annotations

import json
import re
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from gtvray.cli.train import FoldProgress
from gtvray.crossval import FoldStatus
from gtvray.io import sha256_of
from gtvray.models import Bundle
from gtvray.runtime import Cluster

from ..stores import open_store
from .command import KILLED_GONE_S, OPEN_GATE, Running, partial_files, run

SETTINGS = """
preprocessing: {spacing_mm: [8.0, 8.0, 8.0]}
network: {features: [8, 16, 16]}
training: {patch_ijk: [24, 24, 24], epochs: 3, steps_per_epoch: 2, precision: fp32}
inference: {overlap: 0.0}
"""
EPOCHS = 3


@pytest.fixture(scope="session")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("train") / "tiny.yaml"
    path.write_text(SETTINGS)
    return path


def weights(bundle: str) -> list[str]:
    """Digests of the weights of a bundle's members."""
    return [sha256_of(path) for path in sorted(Path(bundle).glob("weights-*"))]


def epochs_of(workspace: Path, fold: str) -> list[tuple[int, float]]:
    """All training losses of a fold in MLflow, as (epoch, value)."""
    client = open_store(workspace / "mlflow.db", workspace / "mlartifacts")
    (experiment,) = [each for each in client.search_experiments() if each.name == "gtvray"]
    (child,) = client.search_runs([experiment.experiment_id], f"tags.`gtvray.fold` = '{fold}'")
    history = client.get_metric_history(child.info.run_id, "train_loss")
    return sorted((metric.step, metric.value) for metric in history)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("{settings}",), "--data"),
        (("{settings}", "--data", "{data}", "--fold", "some"), "a number from 0, or all"),
        (("{settings}", "--data", "{data}", "--fold", "5"), "no such fold"),
        (("{settings}", "optimizer.lrr=1", "--data", "{data}"), "did you mean optimizer.lr"),
        (("--resume", "../../etc"), "no such training"),
        (("{settings}", "--resume", "train-never"), "has its own settings"),
        (("tracking.uri=http://mlflow:5000", "--resume", "train-never"), "no such training"),
        (("tracking.url=http://mlflow:5000", "--resume", "train-never"), "did you mean tracking.uri"),
    ],
)
def test_invalid_training_is_refused(
    words: tuple[str, ...], said: str, phantoms: Path, settings: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    workspace = tmp_path_factory.getbasetemp() / "refused"
    filled = [word.format(settings=settings, data=phantoms) for word in words]
    assert said in run("train", *filled, "--workspace", workspace).error(code=2)
    assert not (workspace / "trainings").exists()


def status(fold: str, epoch: int, note: str = "") -> FoldStatus:
    figures = (0.8125, 0.5, 0.625, 12.5, 0.018) if epoch else (None,) * 5
    return FoldStatus(fold, "training" if epoch else "waiting", epoch, 20, *figures, 605.0 if epoch else None, note)


def test_terminal_shows_a_line_per_fold(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "140")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    progress = FoldProgress({"train": 10.0}, quiet=True)
    with progress.live():
        progress.begin("train", "train-x")
        progress.print("patch: 48 [given]")
        progress.folds([status("fold-0", 5, "its process died [OOM]"), status("fold-1", 0)])
    result = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", capsys.readouterr().err)
    assert "5 of 40 epochs" in result
    assert "patch: 48 [given]" in result
    for words in (
        "fold-0",
        "5/20",
        "0.812",
        "0.625",
        "12.5",
        "1.8%",
        "10:05",
        "its process died [OOM]",
        "fold-1",
        "0/20",
    ):
        assert words in result


def test_nothing_is_displayed_without_a_terminal_or_with_json(capsys: pytest.CaptureFixture[str]) -> None:
    progress = FoldProgress({"train": 10.0}, quiet=True)
    with progress.live():
        progress.begin("train", "train-x")
        progress.print("patch: 48 [given]")
        progress.folds([status("fold-0", 5)])
    assert capsys.readouterr().err == ""


@pytest.fixture(scope="module")
def base(phantoms: Path, settings: Path) -> tuple[Any, ...]:
    return ("train", settings, "--data", phantoms, "--fold", "all", "--folds", "2", "--json")


@pytest.fixture(scope="module")
def undisturbed(
    base: tuple[Any, ...], local_ray: Cluster, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Any]:
    workspace = tmp_path_factory.mktemp("undisturbed")
    return workspace, run(*base, "--workspace", workspace, "--address", local_ray.address, within_s=500).json()


def _same(workspace: Path, done: Any, undisturbed: tuple[Path, Any]) -> None:
    """Require the networks and scores of an undisturbed training, and every epoch once in MLflow."""
    expected_place, expected = undisturbed
    assert weights(done["bundle"]) == weights(expected["bundle"])
    assert done["cases"] == expected["cases"]
    for fold in ("fold-0", "fold-1"):
        found = epochs_of(workspace, fold)
        assert found == epochs_of(expected_place, fold)
        assert [epoch for epoch, _ in found] == list(range(1, EPOCHS + 1))


@pytest.mark.slow
@pytest.mark.ray
def test_folds_become_an_ensemble(undisturbed: tuple[Path, Any]) -> None:
    workspace, done = undisturbed
    assert (done["ok"], done["failed"], done["members"], done["mlflow_has_everything"]) == (True, {}, 2, True)
    assert Bundle.load(Path(done["bundle"])).digest == done["digest"]
    assert len(set(weights(done["bundle"]))) == 2
    cases = [row["case"] for row in done["cases"]]
    assert len(set(cases)) == len(cases) == done["all"]["summary"]["cases"]
    assert partial_files(workspace) == []


@pytest.mark.slow
@pytest.mark.ray
def test_ensemble_is_gated_on_held_out_cases(phantoms: Path, undisturbed: tuple[Path, Any]) -> None:
    workspace, done = undisturbed
    words = ("promote", done["bundle"], "--data", phantoms, "--workspace", workspace, "--json")
    promoted = run(*words, *OPEN_GATE).json()
    assert (promoted["version"], promoted["digest"], promoted["accepted"]) == ("1", done["digest"], True)
    (file,) = (workspace / "decisions").glob("*-promoted/decision.json")
    decision = json.loads(file.read_text())
    held_out = {score["case_id"] for score in decision["evidence"]["candidate"]}
    assert len(held_out) == 3
    assert not held_out & {row["case"] for row in done["cases"]}


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.parametrize("count", [1, 3])
def test_killed_training_resumes_to_the_same_result(
    count: int, base: tuple[Any, ...], undisturbed: tuple[Path, Any], local_ray: Cluster, tmp_path: Path
) -> None:
    place = ("--workspace", tmp_path, "--address", local_ray.address)
    killed = Running(*base, *place, GTVRAY_FAILPOINT=f"tuning.after_report:{count}=kill")
    assert killed.end().code == -signal.SIGKILL
    (name,) = [folder.name for folder in (tmp_path / "trainings").iterdir()]
    done = run("train", "--resume", name, *place, "--json").json()
    assert (done["ok"], done["name"]) == (True, name)
    _same(tmp_path, done, undisturbed)
    assert killed.strays(KILLED_GONE_S) == []


@pytest.mark.slow
@pytest.mark.ray
def test_killed_fold_resumes_in_another_process(
    base: tuple[Any, ...], undisturbed: tuple[Path, Any], tmp_path: Path
) -> None:
    once = tmp_path / "once"
    once.mkdir()
    # The third step is the first of the second epoch; the fold that reaches it first is killed.
    point = {"GTVRAY_FAILPOINT": "training.before_step:3=kill", "GTVRAY_FAILPOINT_ONCE": str(once)}
    done = run(*base, "--workspace", tmp_path, **point).json()
    assert len(list(once.iterdir())) == 1
    _same(tmp_path, done, undisturbed)


@pytest.mark.slow
@pytest.mark.ray
def test_failed_fold_is_reported_and_completed_by_resuming(
    base: tuple[Any, ...], undisturbed: tuple[Path, Any], tmp_path: Path
) -> None:
    once = tmp_path / "once"
    once.mkdir()
    point = {"GTVRAY_FAILPOINT": "training.before_step:3=enospc", "GTVRAY_FAILPOINT_ONCE": str(once)}
    failed = run(*base, "--workspace", tmp_path, **point)
    assert failed.code == 1
    result = failed.json()
    assert (result["ok"], result["members"], len(result["failed"])) == (False, 1, 1)
    (fold,) = result["failed"]
    assert f"error: {fold} failed: " in failed.stderr
    assert f"--resume {result['name']}" in failed.stderr
    done = run("train", "--resume", result["name"], "--workspace", tmp_path, "--json").json()
    _same(tmp_path, done, undisturbed)
