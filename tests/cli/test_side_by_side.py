"""Commands that write to one workspace at the same time, in processes of their own."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from ray.util.state import list_actors

from gtvray.runtime import Cluster
from gtvray.runtime.groups import placement_groups
from gtvray.tracking import read_trials

from ..bundles import random_bundle
from ..polling import wait_until
from ..stores import open_store
from .command import KILLED_GONE_S, ONE_TRIAL_SWEEP, OPEN_GATE, TINY_SWEEP, Running, run
from .test_train import SETTINGS

_LIMIT_S = 220


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(900)
def test_training_evaluation_and_promotion_run_beside_a_sweep(phantoms: Path, tmp_path: Path) -> None:
    (tmp_path / "space.yaml").write_text(ONE_TRIAL_SWEEP)
    (tmp_path / "tiny.yaml").write_text(SETTINGS.replace("epochs: 3", "epochs: 1"))
    place = ("--workspace", tmp_path / "runs")
    arguments = ("sweep", tmp_path / "space.yaml", "--data", phantoms, *place)
    # The sweep runs until it is interrupted.
    sweep = Running(*arguments, GTVRAY_FAILPOINT="tuning.after_report=hang")
    name = re.search(r"^sweep: (\S+):", sweep.wait_for("\nsweep: "), re.MULTILINE)
    assert name is not None

    taken = run(*arguments, "--resume", name[1]).error(code=1)
    assert "another gtvray process" in taken
    assert f"found: process {sweep.pid} on" in taken

    trained = run("train", tmp_path / "tiny.yaml", "--data", phantoms, *place, "--json", within_s=400)
    assert trained.code == 0, trained
    bundle = json.loads(trained.stdout)["bundle"]
    promoted = run("promote", bundle, "--data", phantoms, *place, *OPEN_GATE, "--json", within_s=400)
    assert promoted.code == 0, promoted
    other = random_bundle(tmp_path / "other", 1)
    (tmp_path / "few").mkdir()
    (tmp_path / "few" / "1").symlink_to(phantoms / "1")
    evaluated = run("evaluate", "--data", tmp_path / "few", "-m", other.folder, *place, "--json", within_s=400)
    assert evaluated.code == 0, evaluated
    assert evaluated.json()["mlflow"] is not None, "they share one database"

    sweep.interrupt()
    assert sweep.end(KILLED_GONE_S).code != 0
    assert sweep.strays() == []


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(900)
def test_two_sweeps_share_a_cluster_and_a_workspace(local_ray: Cluster, phantoms: Path, tmp_path: Path) -> None:
    """One runs from start to end while a trial of the other holds its CPU; both end with their own trials."""
    space, workspace = tmp_path / "tiny.yaml", tmp_path / "runs"
    space.write_text(TINY_SWEEP + "max_concurrent: 1\n")
    place = ("--data", phantoms, "--workspace", workspace, "--address", local_ray.address, "--json")
    first = Running("sweep", space, *place, "optimizer.lr=0.002", GTVRAY_FAILPOINT="tuning.after_report=hang")
    try:
        shown = re.search(r"^sweep (\S+)$", first.wait_for("\nresume it: "), re.MULTILINE)
        assert shown is not None
        name = shown[1]
        wait_until(lambda: any(trial.epochs for trial in read_trials(workspace / "sweeps" / name)), _LIMIT_S)
        held, trials = groups(), actors(local_ray)
        assert held
        assert trials

        second = run("sweep", space, *place, "optimizer.lr=0.004", within_s=400).json()
        # The first keeps its placement group, and the second leaves none.
        wait_until(lambda: groups() == held, _LIMIT_S)
        assert actors(local_ray) == trials
        first.interrupt()
        assert first.end(KILLED_GONE_S).code != 0
        assert first.strays() == []
    finally:
        first.kill_all()
    wait_until(lambda: not groups() and not actors(local_ray), _LIMIT_S)

    resumed = run("sweep", space, *place, "optimizer.lr=0.002", "--resume", name, within_s=400).json()
    for result, rate in ((resumed, 0.002), (second, 0.004)):
        assert sorted((trial["trial"], trial["epochs"]) for trial in result["trials"]) == [("t0", 2), ("t1", 2)]
        assert next(trial["optimizer.lr"] for trial in result["trials"] if trial["trial"] == "t0") == rate
    assert resumed["bundle"] != second["bundle"]
    client = open_store(workspace / "mlflow.db", workspace / "mlartifacts")
    experiment = client.get_experiment_by_name("gtvray")
    assert experiment is not None
    parents = [each.data.tags.get("mlflow.parentRunId") for each in client.search_runs([experiment.experiment_id])]
    assert [parents.count(result["sweep_run"]) for result in (resumed, second)] == [2, 2]
    assert parents.count(None) == 2


def groups() -> set[bytes]:
    return {group.placement_group_id for group in placement_groups()}


def actors(cluster: Cluster) -> set[str]:
    """Ids of the running trials; Tune gives all of them one class."""
    found = list_actors(cluster.address, filters=[("state", "=", "ALIVE")], limit=1000)
    return {actor.actor_id for actor in found if actor.class_name.endswith("ResourceTrainable")}
