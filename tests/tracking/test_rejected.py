"""Entries that MLflow never accepts are set aside, later ones are delivered, and a resume retries all of them."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from mlflow.exceptions import MlflowException, RestException
from mlflow.tracking import MlflowClient

from gtvray.errors import InputError
from gtvray.tracking import RunRecorder, experiment_id, read_rejections, summarise_rejections
from gtvray.tracking.faults import is_permanent

from .test_recorder import children, record, steps

QUEUE = "spool.jsonl"


def open_recorder(client: MlflowClient, name: str, folder: Path) -> RunRecorder:
    return RunRecorder(client, name, "sweep", folder / QUEUE, folder / "artifacts")


def purge(database: Path, run_id: str) -> None:
    """Delete a run for good, as `mlflow gc` does."""
    with closing(sqlite3.connect(database)) as connection:
        for table in ("params", "tags", "metrics", "latest_metrics", "runs"):
            connection.execute(f"DELETE FROM {table} WHERE run_uuid = ?", (run_id,))
        connection.commit()


def test_deleted_run_does_not_block_the_others_and_gets_everything_when_it_is_restored(
    client: MlflowClient, tmp_path: Path
) -> None:
    recorder = open_recorder(client, "deleted", tmp_path)
    record(recorder, 2, range(1, 3))
    assert recorder.flush()
    deleted = recorder.trial_run_id("t0")
    client.delete_run(deleted)
    record(recorder, 2, range(3, 5))
    recorder.attach("t1", tmp_path / "removed.txt", "report")
    recorder.finish("t0", "FINISHED")
    recorder.finish("t1", "FINISHED")
    recorder.finish_run("FINISHED")
    assert recorder.close()

    run = client.get_run(recorder.trial_run_id("t1"))
    assert [step for step, _ in steps(client, run)] == [1, 2, 3, 4]
    assert run.info.status == client.get_run(recorder.run_id).info.status == "FINISHED"
    refused, missing = summarise_rejections(recorder.rejections)
    assert (refused.trial, refused.entries) == ("t0", 4), "settings of the restart, two epochs, the end"
    assert f"mlflow runs restore --run-id {deleted}" in refused.reason
    assert (missing.trial, missing.entries) == ("t1", 1)
    assert "removed before it was sent" in missing.reason
    assert recorder.trial_run_id("t0") == deleted

    client.delete_run(recorder.run_id)
    with pytest.raises(InputError, match="run was deleted"):
        open_recorder(client, "deleted", tmp_path)
    client.restore_run(recorder.run_id)
    client.restore_run(deleted)
    again = open_recorder(client, "deleted", tmp_path)
    assert again.close()
    run = children(client, again)["t0"]
    assert (run.info.run_id, run.info.status) == (deleted, "FINISHED")
    assert [step for step, _ in steps(client, run)] == [1, 2, 3, 4]
    assert [refused.trial for refused in summarise_rejections(again.rejections)] == ["t1"]


def test_changed_param_is_set_aside_alone(client: MlflowClient, tmp_path: Path) -> None:
    recorder = open_recorder(client, "changed", tmp_path)
    recorder.describe({"lr": 0.1, "seed": 1}, {})
    recorder.describe({f"key.{n}": n for n in range(30)} | {"lr": 0.2, "epochs": 5}, {"gtvray.data": "d1"})
    recorder.log(None, {"dsc": 0.5, 'a "bad" name': 1.0}, 1)
    assert recorder.close()
    run = client.get_run(recorder.run_id)
    assert run.data.params == {"lr": "0.1", "seed": "1", "epochs": "5"} | {f"key.{n}": str(n) for n in range(30)}
    assert (run.data.tags["gtvray.data"], run.data.metrics) == ("d1", {"dsc": 0.5})
    param, metric = recorder.rejections
    assert (param.entry["params"], param.entry["tags"]) == ({"lr": "0.2"}, {})
    assert "Changing param values is not allowed" in param.reason
    assert list(metric.entry["metrics"]) == ['a "bad" name']


def test_experiment_deleted_during_a_sweep_ends_nothing(client: MlflowClient, tmp_path: Path) -> None:
    recorder = open_recorder(client, "gone", tmp_path)
    record(recorder, 1, range(1, 2))
    assert recorder.flush()
    experiment = client.get_run(recorder.run_id).info.experiment_id
    client.delete_experiment(experiment)
    record(recorder, 2, range(2, 3))
    recorder.finish_run("FINISHED")
    assert recorder.close()
    reasons = {refused.reason for refused in summarise_rejections(recorder.rejections)}
    assert len(reasons) == 1
    assert f"mlflow experiments restore --experiment-id {experiment}" in reasons.pop()
    assert recorder.trial_run_id("t1") == recorder.run_id, "its run was never created"
    client.restore_experiment(experiment)
    again = open_recorder(client, "gone", tmp_path)
    assert again.close()
    assert again.rejections == []
    runs = children(client, again)
    assert {trial: [step for step, _ in steps(client, run)] for trial, run in runs.items()} == {"t0": [1, 2], "t1": [2]}


@pytest.mark.parametrize("which", ["trial", "parent"])
def test_resume_after_a_purged_run_records_it_again_with_its_params(
    which: str, client: MlflowClient, database: Path, tmp_path: Path
) -> None:
    first = open_recorder(client, f"purged {which}", tmp_path)
    first.describe({"space": "lr"}, {"gtvray.data": "d1"})
    record(first, 2, range(1, 3))
    first.finish("t0", "FINISHED")
    assert first.close()
    purged = first.trial_run_id("t0") if which == "trial" else first.run_id
    purge(database, purged)
    again = open_recorder(client, f"purged {which}", tmp_path)
    again.log("t1", {"selection_dsc": 0.3}, 3)
    assert again.close()
    runs = children(client, again)
    assert {run.data.params["loss.kind"] for run in runs.values()} == {"dice_ce"}
    assert [step for step, _ in steps(client, runs["t0"])] == [1, 2]
    assert [step for step, _ in steps(client, runs["t1"])] == [1, 2, 3]
    assert runs["t0"].info.status == "FINISHED"
    parent = client.get_run(again.run_id)
    assert (parent.data.params, parent.data.tags["gtvray.data"]) == ({"space": "lr"}, "d1")
    assert again.rejections == []
    assert (again.run_id == first.run_id) == (which == "trial")


def test_faults_are_permanent_by_their_code(client: MlflowClient, database: Path, tmp_path: Path) -> None:
    missing = "0" * 32
    with pytest.raises(MlflowException) as absent:
        client.set_tag(missing, "a", "b")
    assert is_permanent(absent.value)
    for code, permanent in {
        "INVALID_PARAMETER_VALUE": True,
        "RESOURCE_DOES_NOT_EXIST": True,
        "TEMPORARILY_UNAVAILABLE": False,
        "INTERNAL_ERROR": False,
        "ENDPOINT_NOT_FOUND": False,
        "PERMISSION_DENIED": False,
        "BAD_REQUEST": False,
    }.items():
        assert is_permanent(RestException({"error_code": code})) == permanent, code
    for error in (ConnectionError(), TimeoutError(), OSError(28, "No space left"), RuntimeError()):
        assert not is_permanent(error)


def test_name_with_quotes_is_found_again(client: MlflowClient, tmp_path: Path) -> None:
    name = 'o\'neill "50%" \\ `x`'
    for _ in range(2):
        recorder = RunRecorder(client, "quotes", name, tmp_path / QUEUE, tmp_path / "artifacts")
        recorder.start("t'0", {"lr": 1}, {})
        assert recorder.close()
    runs = client.search_runs([experiment_id(client, "quotes", None)])
    assert len(runs) == 2, "one parent and one child"
    assert read_rejections(tmp_path / QUEUE) == []
