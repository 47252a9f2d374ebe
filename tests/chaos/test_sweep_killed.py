"""A sweep whose process is killed resumes with the same trials and MLflow runs, and records no metric twice."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path

import pytest

from gtvray.models import Checkpoint
from gtvray.runtime import Cluster
from gtvray.tracking import read_trials

from ..cli.command import KILLED_GONE_S, ONE_TRIAL_SWEEP, OPEN_GATE, TINY_SWEEP, Running, partial_files, run
from ..stores import open_store

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]
SWEEP = TINY_SWEEP.replace("epochs: 2", "epochs: 3").replace("trials: 2", "trials: 3\nmax_concurrent: 1")


def kill_sweep(point: str, command: list[object], workspace: Path) -> Path:
    """Run a sweep until its process is killed at a failpoint; return the folder of the sweep."""
    killed = Running(*command, GTVRAY_FAILPOINT=f"{point}=kill")
    assert killed.end(within_s=400).code == -signal.SIGKILL
    (folder,) = (workspace / "sweeps").iterdir()
    return folder


@pytest.mark.parametrize(
    "point",
    [
        "tuning.after_plan:2",
        "tuning.after_start:2",
        "tuning.after_report:3",
        "tuning.after_end:1",
        "tuning.before_result:1",
    ],
)
def test_killed_sweep_resumes(point: str, phantoms: Path, tmp_path: Path, local_ray: Cluster) -> None:
    """No trial is lost or duplicated, and no epoch is recorded twice, wherever the process is killed.

    The cluster continues, and removes what the killed process had started on it. Kills within the second trial are
    tested below, with a cluster that dies with the process.
    """
    space, workspace = tmp_path / "tiny.yaml", tmp_path / "workspace"
    space.write_text(SWEEP)
    command = ["sweep", space, "--data", phantoms, "--workspace", workspace, "--json", "--address", local_ray.address]
    folder = kill_sweep(point, command, workspace)
    begun = {trial.trial_id: trial.settings for trial in read_trials(folder)}
    assert begun

    finished = run(*command, "--resume", folder.name, within_s=400)
    assert finished.code == 0, finished
    trials = {trial["trial"]: trial for trial in finished.json()["trials"]}
    assert sorted(trials) == ["t0", "t1", "t2"]
    assert [trial["epochs"] for trial in trials.values()] == [3, 3, 3]
    assert all(trials[name]["optimizer.lr"] == settings["optimizer.lr"] for name, settings in begun.items())
    client = open_store(workspace / "mlflow.db", workspace / "mlartifacts")
    experiment = client.get_experiment_by_name("gtvray")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    children = [each for each in runs if "mlflow.parentRunId" in each.data.tags]
    assert len(children) == len(runs) - 1 == 3
    for child in children:
        history = client.get_metric_history(child.info.run_id, "train_loss")
        assert [figure.step for figure in history] == [1, 2, 3]
        assert child.info.status == "FINISHED"
    assert partial_files(workspace) == []
    if point != "tuning.before_result:1":
        return
    # Resuming it once more changes nothing.
    before, logged = tree(workspace / "bundles"), len(client.search_runs([experiment.experiment_id]))
    again = run(*command, "--resume", folder.name, within_s=400)
    assert (again.code, again.json()["best"], again.json()["digest"]) == (
        0,
        finished.json()["best"],
        finished.json()["digest"],
    )
    assert again.json()["trials"] == finished.json()["trials"]
    assert tree(workspace / "bundles") == before
    assert len(client.search_runs([experiment.experiment_id])) == logged


@pytest.mark.parametrize("point", ["tuning.after_export", "tuning.after_result"])
def test_sweep_killed_at_its_end_has_one_bundle_and_one_record(
    point: str, phantoms: Path, tmp_path: Path, local_ray: Cluster
) -> None:
    """The bundle is the one that was written before the kill, and MLflow gets what it lacks, once."""
    space, workspace = tmp_path / "one.yaml", tmp_path / "workspace"
    space.write_text(ONE_TRIAL_SWEEP)
    command = ["sweep", space, "--data", phantoms, "--workspace", workspace, "--json", "--address", local_ray.address]
    folder = kill_sweep(point, command, workspace)
    assert (folder / "result.json").exists() is (point == "tuning.after_result")
    bundles = tree(workspace / "bundles")
    assert bundles

    finished = run(*command, "--resume", folder.name, within_s=400)
    assert finished.code == 0, finished
    found = finished.json()
    assert found["mlflow_has_everything"] is True
    assert tree(workspace / "bundles") == bundles
    client = open_store(workspace / "mlflow.db", workspace / "mlartifacts")
    experiment = client.get_experiment_by_name("gtvray")
    assert experiment is not None
    runs = {each.info.run_id: each for each in client.search_runs([experiment.experiment_id])}
    assert set(runs) == {found["run"], found["sweep_run"]}
    assert {each.info.status for each in runs.values()} == {"FINISHED"}
    parent = runs[found["sweep_run"]]
    assert parent.data.tags["gtvray.best_run"] == found["run"]
    assert runs[found["run"]].data.tags["gtvray.digest"] == found["digest"]
    for each in runs.values():
        for name in each.data.metrics:
            assert len(client.get_metric_history(each.info.run_id, name)) == 1, name
    assert [file.path for file in client.list_artifacts(found["sweep_run"])] == ["report"]
    assert [file.path for file in client.list_artifacts(found["run"])] == ["bundle"]
    assert partial_files(workspace) == []

    before = tree(folder)
    again = run(*command, "--resume", folder.name, within_s=400)
    assert (again.code, again.json()) == (0, found)
    assert tree(folder) == before, "nothing is added to the queue"
    assert client.get_run(found["sweep_run"]).info.end_time == parent.info.end_time


# The default settings learn and the others hardly do, so they take over its weights after the second epoch.
POPULATION = """
trials: 3
searcher: random
scheduler: {kind: pbt, grace_epochs: 2}
start: [{optimizer.lr: 1.0e-9}, {optimizer.lr: 1.0e-8}]
base:
  preprocessing.spacing_mm: [8.0, 8.0, 8.0]
  network.features: [8, 16, 16]
  training.patch_ijk: [24, 24, 24]
  training.epochs: 4
  training.steps_per_epoch: 8
  training.precision: fp32
space:
  optimizer.lr: {low: 1.0e-9, high: 0.05, log: true}
"""


@pytest.mark.parametrize("point", ["tuning.after_exploit:1", "tuning.after_report:8"])
def test_killed_population_resumes_with_the_weights_that_it_took_over(
    point: str, phantoms: Path, tmp_path: Path
) -> None:
    """The process is killed before a trial has loaded the weights that it takes over, or in a later epoch."""
    space, workspace = tmp_path / "population.yaml", tmp_path / "workspace"
    space.write_text(POPULATION)
    command = ["sweep", space, "optimizer.lr=0.02", "--data", phantoms, "--workspace", workspace, "--json"]
    folder = kill_sweep(point, command, workspace)
    before = {trial.trial_id: trial for trial in read_trials(folder)}
    taken = {name: trial.exploits[0] for name, trial in before.items() if trial.exploits}
    assert taken

    finished = run(*command, "--resume", folder.name, within_s=400)
    assert finished.code == 0, finished
    trials = {trial.trial_id: trial for trial in read_trials(folder)}
    for name, (epoch, _, text) in taken.items():
        source = text.split(" ")[3].removesuffix(",")
        theirs = [value for _, value in trials[source].curve("train_loss")][:epoch]
        # A sweep that has ended keeps the checkpoints of its best trial only.
        for kept in sorted((folder / "trials" / name).glob("epoch-*"))[-1:]:
            assert [entry["train_loss"] for entry in Checkpoint.load(kept).meta["history"][:epoch]] == theirs
        own = before[name].curve("train_loss")
        assert trials[name].curve("train_loss")[: len(own)] == own, (
            "the record keeps the epochs that the trial itself reported"
        )
        assert [value for _, value in own] != theirs[: len(own)]
    assert [max(trial.epochs) for trial in trials.values()] == [4, 4, 4]
    client = open_store(workspace / "mlflow.db", workspace / "mlartifacts")
    experiment = client.get_experiment_by_name("gtvray")
    assert experiment is not None
    children = client.search_runs([experiment.experiment_id], "tags.`mlflow.parentRunId` LIKE '%'")
    assert len(children) == 3
    for child in children:
        history = client.get_metric_history(child.info.run_id, "selection_dsc")
        assert [figure.step for figure in history] == [1, 2, 3, 4], "every epoch is recorded once"


def tree(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_killed_sweep_resumes_in_an_adopted_copy_and_in_the_moved_original(phantoms: Path, tmp_path: Path) -> None:
    """The process is killed in its second of three trials: one has ended, one is resumed, one starts afterwards."""
    space, workspace = tmp_path / "o'neill.yaml", tmp_path / "workspace"
    copy, moved = tmp_path / "copy", tmp_path / "moved here"
    space.write_text(SWEEP.replace("searcher: random", "searcher: optuna"))
    command = ["sweep", space, "--data", phantoms, "--json"]
    killed = Running(*command, "--workspace", workspace, GTVRAY_FAILPOINT="tuning.after_report:5=kill")
    assert killed.end(within_s=400).code == -signal.SIGKILL
    (folder,) = (workspace / "sweeps").iterdir()
    shutil.copytree(workspace, copy, symlinks=True)

    before = tree(workspace)
    resume = [*command, "--workspace", copy, "--resume", folder.name]
    assert "is a copy" in run(*resume, within_s=200).error(code=2)
    assert run("workspace", "adopt", "--workspace", copy, within_s=100).code == 0
    finished = run(*resume, within_s=400)
    assert finished.code == 0, finished
    assert [trial["epochs"] for trial in finished.json()["trials"]] == [3, 3, 3]
    promote = ["promote", finished.json()["bundle"], "--data", phantoms, "--workspace", copy, *OPEN_GATE]
    promoted = run(*promote, within_s=300)
    assert promoted.code == 0, promoted
    assert run("qa", "--workspace", copy, within_s=200).code == 0
    assert tree(workspace) == before

    workspace.rename(moved)
    finished = run(*command, "--workspace", moved, "--resume", folder.name, within_s=400)
    assert finished.code == 0, finished
    assert not workspace.exists()
    found = finished.json()
    assert [trial["epochs"] for trial in found["trials"]] == [3, 3, 3]
    assert Path(found["bundle"]).is_relative_to(moved)
    client = open_store(moved / "mlflow.db", moved / "mlartifacts")
    experiment = client.get_experiment_by_name("gtvray")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    assert {each.info.status for each in runs} == {"FINISHED"}
    assert all(each.info.artifact_uri.startswith((moved / "mlartifacts").as_uri()) for each in runs)
    assert client.list_artifacts(found["run"], "bundle")


def test_killed_training_resumes_in_a_moved_workspace(phantoms: Path, tmp_path: Path) -> None:
    """The data are inside the workspace and are moved with it."""
    workspace, moved = tmp_path / "workspace", tmp_path / "moved here"
    settings = ["preprocessing.spacing_mm=[8, 8, 8]", "network.features=[8, 16, 16]", "training.patch_ijk=[24, 24, 24]",
                "training.epochs=2", "training.steps_per_epoch=2", "training.precision=fp32"]  # fmt: skip
    shutil.copytree(phantoms, workspace / "phantoms")
    command = ["train", *settings, "--data", workspace / "phantoms", "--fold", "all", "--folds", "2", "--json"]
    killed = Running(*command, "--workspace", workspace, GTVRAY_FAILPOINT="tuning.after_report:3=kill")
    assert killed.end(within_s=400).code == -signal.SIGKILL
    # The process of the other fold may outlive the kill briefly and write a checkpoint at the old path.
    assert killed.strays(KILLED_GONE_S) == []
    (folder,) = (workspace / "trainings").iterdir()
    workspace.rename(moved)
    finished = run("train", "--resume", folder.name, "--workspace", moved, "--json", within_s=400)
    assert finished.code == 0, finished
    assert not workspace.exists(), list(workspace.rglob("*"))
    assert len(finished.json()["folds"]) == 2
    client = open_store(moved / "mlflow.db", moved / "mlartifacts")
    assert [each.path for each in client.list_artifacts(finished.json()["run"], "bundle")]
