"""What was deleted in MLflow: told of before any work, with the command that restores it."""

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


def run_advice(error: InputError) -> None:
    """Run the command that an error gives, as it would be pasted."""
    _, mark, command = error.fields["do"].partition("restore it: ")
    assert mark, error
    setting, program, *rest = shlex.split(command)
    name, _, value = setting.partition("=")
    assert program == "mlflow"
    subprocess.run([sys.executable, "-m", "mlflow", *rest], env={**os.environ, name: value}, check=True, timeout=110)


def recorded(client: MlflowClient, experiment: str, folder: Path) -> dict[str, str]:
    """A sweep with a trial that was cut off; its runs."""
    recorder = RunRecorder(client, experiment, "o'neill", folder / "spool.jsonl", folder / "artifacts")
    recorder.start("t0", {"optimizer.lr": 0.1}, {})
    assert recorder.close(60)
    return {"parent": recorder.run_id, "child": recorder.trial_run_id("t0")}


@pytest.mark.timeout(120)
def test_a_deleted_experiment_is_told_of_and_restored(client: MlflowClient, tmp_path: Path) -> None:
    found = experiment_id(client, "deleted one", tmp_path / "artifacts")
    client.delete_experiment(found)
    for attempt in (
        lambda: require_recordable(client, "deleted one"),
        lambda: experiment_id(client, "deleted one", tmp_path / "artifacts"),
    ):
        with pytest.raises(InputError, match="experiment was deleted") as caught:
            attempt()
    run_advice(caught.value)
    require_recordable(client, "deleted one")
    assert experiment_id(client, "deleted one", tmp_path / "artifacts") == found


@pytest.mark.parametrize("which", ["parent", "child"])
def test_a_deleted_run_of_a_sweep_that_goes_on_is_told_of(which: str, client: MlflowClient, tmp_path: Path) -> None:
    runs = recorded(client, f"deleted {which}", tmp_path)
    require_recordable(client, f"deleted {which}", "o'neill")
    client.delete_run(runs[which])
    with pytest.raises(InputError, match="run was deleted") as caught:
        require_recordable(client, f"deleted {which}", "o'neill")
    assert f"mlflow runs restore --run-id {runs[which]}" in caught.value.fields["do"]
    require_recordable(client, f"deleted {which}", "another sweep")
    client.restore_run(runs[which])
    require_recordable(client, f"deleted {which}", "o'neill")
    assert recorded(client, f"deleted {which}", tmp_path) == runs


def test_what_was_never_recorded_can_be(client: MlflowClient) -> None:
    require_recordable(client, "not there yet", "a sweep")
