"""Deleted runs and experiments are reported before any work is done, with the command that restores them."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from gtvray.errors import InputError
from gtvray.tracking import RunRecorder, experiment_id, require_recordable


def run_restore_command(error: InputError) -> None:
    """Run the command that an error gives, as a user would paste it."""
    _, separator, command = error.fields["do"].partition("restore it: ")
    assert separator, error
    setting, program, *rest = shlex.split(command)
    name, _, value = setting.partition("=")
    assert program == "mlflow"
    subprocess.run([sys.executable, "-m", "mlflow", *rest], env={**os.environ, name: value}, check=True, timeout=110)


def record_interrupted(client: MlflowClient, experiment: str, folder: Path) -> dict[str, str]:
    """Record a sweep with a trial that did not end; return the ids of both runs."""
    recorder = RunRecorder(client, experiment, "o'neill", folder / "spool.jsonl", folder / "artifacts")
    recorder.start("t0", {"optimizer.lr": 0.1}, {})
    assert recorder.close(60)
    return {"parent": recorder.run_id, "child": recorder.trial_run_id("t0")}


@pytest.mark.timeout(120)
def test_deleted_experiment_is_refused_and_restored_by_the_command(client: MlflowClient, tmp_path: Path) -> None:
    found = experiment_id(client, "deleted experiment", tmp_path / "artifacts")
    client.delete_experiment(found)
    for attempt in (
        lambda: require_recordable(client, "deleted experiment"),
        lambda: experiment_id(client, "deleted experiment", tmp_path / "artifacts"),
    ):
        with pytest.raises(InputError, match="experiment was deleted") as caught:
            attempt()
    run_restore_command(caught.value)
    require_recordable(client, "deleted experiment")
    assert experiment_id(client, "deleted experiment", tmp_path / "artifacts") == found


@pytest.mark.parametrize("which", ["parent", "child"])
def test_deleted_run_of_a_resumed_sweep_is_refused(which: str, client: MlflowClient, tmp_path: Path) -> None:
    runs = record_interrupted(client, f"deleted {which}", tmp_path)
    require_recordable(client, f"deleted {which}", "o'neill")
    client.delete_run(runs[which])
    with pytest.raises(InputError, match="run was deleted") as caught:
        require_recordable(client, f"deleted {which}", "o'neill")
    assert f"mlflow runs restore --run-id {runs[which]}" in caught.value.fields["do"]
    require_recordable(client, f"deleted {which}", "another sweep")
    client.restore_run(runs[which])
    require_recordable(client, f"deleted {which}", "o'neill")
    assert record_interrupted(client, f"deleted {which}", tmp_path) == runs


def test_new_experiment_can_be_recorded(client: MlflowClient) -> None:
    require_recordable(client, "new experiment", "a sweep")
