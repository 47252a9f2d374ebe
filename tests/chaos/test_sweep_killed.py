"""The process of a sweep is killed: started again it goes on in the same trials and runs, with no figure twice."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from ..cli.command import TINY_SWEEP, Running, partial_files, run
from ..stores import open_store

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]
SWEEP = TINY_SWEEP.replace("epochs: 2", "epochs: 3").replace("trials: 2", "trials: 3\nmax_concurrent: 1")


@pytest.mark.parametrize("nth", [2, 5])
def test_a_killed_sweep_goes_on(nth: int, phantoms: Path, tmp_path: Path) -> None:
    space, workspace = tmp_path / "tiny.yaml", tmp_path / "workspace"
    space.write_text(SWEEP)
    command = ["sweep", space, "--data", phantoms, "--workspace", workspace, "--json"]
    killed = Running(*command, GTVRAY_FAILPOINT=f"tuning.after_report:{nth}=kill")
    assert killed.end(within_s=400).code == -signal.SIGKILL
    (folder,) = (workspace / "sweeps").iterdir()
    begun = {trial.name for trial in (folder / "trials").iterdir()}
    assert begun

    finished = run(*command, "--resume", folder.name, within_s=400)
    assert finished.code == 0, finished
    trials = finished.json()["trials"]
    assert [trial["epochs"] for trial in trials] == [3, 3, 3]
    assert begun <= {trial["trial"] for trial in trials}
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


def test_what_was_never_begun_or_was_another_cannot_be_resumed(phantoms: Path, tmp_path: Path) -> None:
    space, workspace = tmp_path / "tiny.yaml", tmp_path / "workspace"
    space.write_text(TINY_SWEEP)
    command = ["sweep", space, "--data", phantoms, "--workspace", workspace]
    assert "no such sweep" in run(*command, "--resume", "nothing", within_s=200).error(code=2)
