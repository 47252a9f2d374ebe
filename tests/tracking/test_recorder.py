"""Run records in a real MLflow: complete, continued after a restart, without duplicates."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from gtvray.tracking import RunRecorder, connect_mlflow

from ..stores import MlflowServer

PARAMS = {"optimizer.lr": 0.003, "training.patch_ijk": [16, 16, 16], "loss.kind": "dice_ce"}


def children(client: MlflowClient, recorder: RunRecorder) -> dict[str, Run]:
    """Return the child runs of a sweep by trial."""
    experiment = client.get_run(recorder.run_id).info.experiment_id
    found = client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{recorder.run_id}'")
    runs = {run.data.tags["ray.trial_id"]: run for run in found}
    assert len(runs) == len(found), "one run per trial"
    return runs


def steps(client: MlflowClient, run: Run, name: str = "selection_dsc") -> list[tuple[int, float]]:
    return [(metric.step, metric.value) for metric in client.get_metric_history(run.info.run_id, name)]


def record(recorder: RunRecorder, trials: int, epochs: range) -> None:
    for trial in range(trials):
        recorder.start(f"t{trial}", PARAMS, {"gtvray.data": "d1"})
    for epoch in epochs:
        for trial in range(trials):
            recorder.log(f"t{trial}", {"selection_dsc": epoch / 10, "train_loss": 1 / epoch}, epoch)


def test_sweep_is_a_parent_run_with_a_child_run_per_trial(client: MlflowClient, tmp_path: Path) -> None:
    recorder = RunRecorder(client, "children", "sweep-1", tmp_path / "spool.jsonl", tmp_path / "artifacts")
    recorder.describe({f"key.{n}": n for n in range(250)} | {"long": "x" * 10_000}, {"gtvray.data": "d1"})
    # More entries than one request takes.
    record(recorder, 3, range(1, 61))
    recorder.finish("t0", "FINISHED")
    recorder.finish("t1", "FAILED")
    recorder.finish_run("KILLED")
    assert recorder.close()
    parent, runs = client.get_run(recorder.run_id), children(client, recorder)
    assert parent.data.params["key.249"] == "249"
    assert len(parent.data.params) == 251
    assert parent.data.tags["gtvray.data"] == "d1"
    assert sorted(runs) == ["t0", "t1", "t2"]
    assert [runs[f"t{n}"].info.status for n in range(3)] == ["FINISHED", "FAILED", "KILLED"]
    assert parent.info.status == "KILLED"
    for trial, run in runs.items():
        assert run.data.params == {key: str(value) for key, value in PARAMS.items()}
        assert steps(client, run) == [(epoch, epoch / 10) for epoch in range(1, 61)]
        assert recorder.trial_run_id(trial) == run.info.run_id


def test_restarted_sweep_continues_the_same_runs(client: MlflowClient, tmp_path: Path) -> None:
    first = RunRecorder(client, "restart", "sweep", tmp_path / "spool.jsonl", tmp_path / "artifacts")
    record(first, 2, range(1, 3))
    assert first.close()
    again = RunRecorder(client, "restart", "sweep", tmp_path / "spool.jsonl", tmp_path / "artifacts")
    record(again, 2, range(3, 5))
    assert again.close()
    assert again.run_id == first.run_id
    runs = children(client, again)
    assert len(runs) == 2
    for run in runs.values():
        assert [step for step, _ in steps(client, run)] == [1, 2, 3, 4]
    other = RunRecorder(client, "restart", "another", tmp_path / "other.jsonl", tmp_path / "artifacts")
    assert other.close()
    assert other.run_id != first.run_id


def test_trial_that_ended_keeps_its_status_when_a_later_process_is_killed(client: MlflowClient, tmp_path: Path) -> None:
    first = RunRecorder(client, "ended", "sweep", tmp_path / "spool.jsonl", tmp_path / "artifacts")
    record(first, 2, range(1, 2))
    first.finish("t0", "FINISHED")
    # As the bundle of the best trial is recorded.
    first.describe({}, {"gtvray.digest": "abc"}, "t0")
    first.attach("t0", tmp_path / "spool.jsonl", "bundle")
    assert first.close()
    again = RunRecorder(client, "ended", "sweep", tmp_path / "spool.jsonl", tmp_path / "artifacts")
    again.finish_run("KILLED")
    assert again.close()
    statuses = {trial: run.info.status for trial, run in children(client, again).items()}
    assert statuses == {"t0": "FINISHED", "t1": "KILLED"}
    assert client.get_run(first.trial_run_id("t0")).data.tags["gtvray.digest"] == "abc"


def test_repeated_epoch_is_recorded_once(client: MlflowClient, tmp_path: Path) -> None:
    """A trial that is killed before its checkpoint is registered repeats epochs, in this process or the next."""
    first = RunRecorder(client, "again", "sweep", tmp_path / "spool.jsonl", tmp_path / "artifacts")
    record(first, 1, range(1, 4))
    first.log("t0", {"selection_dsc": 0.3, "train_loss": 1 / 3}, 3, at_ms=1)
    assert first.close()
    again = RunRecorder(client, "again", "sweep", tmp_path / "spool.jsonl", tmp_path / "artifacts")
    record(again, 1, range(2, 6))
    again.log("t0", {"other": 7.0}, 2)
    assert again.close()
    (run,) = children(client, again).values()
    assert steps(client, run) == [(epoch, epoch / 10) for epoch in range(1, 6)]
    assert steps(client, run, "other") == [(2, 7.0)]


def test_crash_between_delivery_and_mark_duplicates_nothing(client: MlflowClient, tmp_path: Path) -> None:
    first = RunRecorder(client, "doubles", "sweep", tmp_path / "spool.jsonl", tmp_path / "artifacts")
    record(first, 1, range(1, 4))
    first.finish("t0", "FINISHED")
    assert first.close()
    (tmp_path / "spool.mark").unlink()
    again = RunRecorder(client, "doubles", "sweep", tmp_path / "spool.jsonl", tmp_path / "artifacts")
    assert again.close()
    (run,) = children(client, again).values()
    assert [step for step, _ in steps(client, run)] == [1, 2, 3]
    assert run.info.status == "FINISHED"


@pytest.fixture
def server(tmp_path: Path, client: MlflowClient, database: Path) -> Iterator[MlflowServer]:
    server = MlflowServer(database, tmp_path)
    yield server
    server.kill()


@pytest.mark.slow
def test_server_outage_loses_no_metrics(server: MlflowServer, client: MlflowClient, tmp_path: Path) -> None:
    server.start()
    http_client = connect_mlflow(server.uri, tmp_path)
    recorder = RunRecorder(http_client, "outage", "sweep", tmp_path / "spool.jsonl")
    record(recorder, 1, range(1, 3))
    assert recorder.flush(60)
    server.kill()
    record(recorder, 2, range(3, 6))
    assert not recorder.flush(1)
    server.start()
    recorder.log("t0", {"selection_dsc": 0.6}, 6)
    recorder.finish("t0", "FINISHED")
    assert recorder.close(60)
    runs = children(client, recorder)
    assert [step for step, _ in steps(client, runs["t0"])] == [1, 2, 3, 4, 5, 6]
    assert [step for step, _ in steps(client, runs["t1"])] == [3, 4, 5]
    assert runs["t0"].info.status == "FINISHED"


_DRIVER = """
import sys
from pathlib import Path
from gtvray.tracking import RunRecorder, connect_mlflow
folder = Path(sys.argv[2])
recorder = RunRecorder(connect_mlflow(sys.argv[1], folder), sys.argv[5], "sweep", folder / "spool.jsonl")
recorder.start("t0", {"optimizer.lr": 0.1}, {})
for epoch in range(1, int(sys.argv[3]) + 1):
    recorder.log("t0", {"train_loss": 1 / epoch}, epoch)
    print(epoch, recorder.flush(float(sys.argv[4])), flush=True)
recorder.finish_run("FINISHED")
print(recorder.close(60), flush=True)
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("point", ["tracking.after_delivery:3", "tracking.before_delivery:3"])
def test_killed_server_and_driver_lose_and_duplicate_nothing(
    point: str, server: MlflowServer, client: MlflowClient, tmp_path: Path
) -> None:
    def drive(epochs: int, flush_s: float, failpoint: str = "") -> tuple[int, list[str]]:
        command = [sys.executable, "-c", _DRIVER, server.uri, str(tmp_path), str(epochs)]
        environment = {**os.environ, "GTVRAY_FAILPOINT": failpoint}
        done = subprocess.run(
            [*command, str(flush_s), point],
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
            timeout=300,
            check=False,
        )
        return done.returncode, done.stdout.splitlines()

    server.start()
    code, lines = drive(5, 100, f"{point}=kill")
    assert code == -signal.SIGKILL
    assert "5 True" not in lines
    server.kill()
    server.start()
    code, lines = drive(5, 100)
    assert (code, lines[-1]) == (0, "True")
    experiment = client.get_experiment_by_name(point)
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], "tags.`ray.trial_id` = 't0'")
    assert len(runs) == 1
    assert [step for step, _ in steps(client, runs[0], "train_loss")] == [1, 2, 3, 4, 5]
    assert runs[0].info.status == "FINISHED"
