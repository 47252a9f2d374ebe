"""MLflow is unreachable when a sweep, training or evaluation ends: all results are on disk, and a resume sends them."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from gtvray import api
from gtvray.config import Config, SweepConfig, with_dotted
from gtvray.crossval import TrainJob, TrainRequest
from gtvray.errors import ResourceError
from gtvray.io import Workspace
from gtvray.models import Bundle
from gtvray.reports import Study
from gtvray.runtime import Cluster
from gtvray.tracking import RunRecorder
from gtvray.tuning import SweepJob

from ..bundles import random_bundle
from ..stores import MlflowServer
from ..tuning.conftest import client, config

__all__ = ["client", "config"]

pytestmark = [
    pytest.mark.filterwarnings(r"ignore:`use_\w+` is deprecated"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
SWEEP = SweepConfig.model_validate(
    {"trials": 1, "scheduler": {"kind": "none"}, "space": {"optimizer.lr": {"low": 0.001, "high": 0.01}}}
)
Outage = Callable[[], AbstractContextManager[None]]


class Show:
    """Progress that starts an outage at the first progress of a stage."""

    def __init__(self, stage: str, begin: Callable[[], None]) -> None:
        self._stage, self._begin, self._now, self._begun = stage, begin, "", False

    def begin(self, stage: str, detail: str) -> None:
        self._now = stage

    def advance(self, done: float, total: float, detail: str = "") -> None:
        if self._now == self._stage and not self._begun:
            self._begun = True
            self._begin()

    def waiting(self, reason: str | None) -> None:
        """Nothing is shown."""

    def note(self, text: str) -> None:
        """Nothing is shown."""


@pytest.fixture
def workspace(client: MlflowClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """A workspace with a database; an experiment waits two seconds for MLflow at its end, not thirty."""
    for wait in (RunRecorder.flush, RunRecorder.close):
        monkeypatch.setattr(wait, "__defaults__", (2.0,))
    workspace = Workspace(tmp_path / "runs")
    workspace.root.mkdir()
    shutil.copy(client.tracking_uri.removeprefix("sqlite:///"), workspace.mlflow_database)
    return workspace


@pytest.fixture
def server(workspace: Workspace) -> Iterator[MlflowServer]:
    server = MlflowServer(workspace.mlflow_database, workspace.root)
    server.start()
    yield server
    server.kill()


@contextmanager
def locked(database: Path) -> Iterator[Callable[[], None]]:
    """Yield a function that locks a database until the `with` block ends."""
    with sqlite3.connect(database, isolation_level=None, check_same_thread=False) as connection:
        yield lambda: connection.execute("BEGIN EXCLUSIVE").close()
    connection.close()


def stored(client: MlflowClient, run_id: str) -> set[str]:
    return {file.path for file in client.list_artifacts(run_id)}


@pytest.mark.ray
@pytest.mark.slow
def test_sweep_ends_with_table_page_and_bundle_although_the_server_died(
    local_ray: Cluster, server: MlflowServer, workspace: Workspace, phantoms: Path, config: Config
) -> None:
    settings = with_dotted(config, {"tracking.uri": server.uri, "training.epochs": 1})
    job = SweepJob(SWEEP, settings, workspace, "one", Show("sweep", server.kill))
    outcome = job.run(job.open(phantoms), local_ray)
    assert (outcome.delivered, outcome.refused) == (False, [])
    assert [trial.epochs for trial in outcome.result.trials] == [1]
    assert Bundle.load(outcome.bundle.folder).info["mlflow_run"] == outcome.run_id
    assert outcome.page is not None
    assert outcome.page.is_file()

    server.start()
    again = SweepJob(SWEEP, settings, workspace, "one", Show("", server.kill))
    with again.record.open() as record:
        record.status = "FINISHED"
    assert (record.delivered, record.refused) == (True, [])
    client, trial = again.record.client, record.recorder.trial_run_id(outcome.result.best.trial_id)
    assert client.get_run(outcome.sweep_run_id).info.status == client.get_run(trial).info.status == "FINISHED"
    assert client.get_run(trial).data.tags["gtvray.digest"] == outcome.bundle.digest
    assert client.get_run(trial).data.params["optimizer.lr"]
    assert stored(client, trial) == {"bundle"}
    assert stored(client, outcome.sweep_run_id) == {"report"}
    server.kill()
    with pytest.raises(ResourceError, match="MLflow does not answer"), again.record.open():
        pytest.fail("a record needs MLflow when it is opened")


@pytest.mark.ray
@pytest.mark.slow
def test_training_ends_with_scores_and_bundle_although_the_database_is_locked(
    local_ray: Cluster, workspace: Workspace, phantoms: Path, config: Config
) -> None:
    settings = with_dotted(config, {"training.epochs": 1})
    with locked(workspace.mlflow_database) as lock:
        job = TrainJob(TrainRequest(settings, phantoms), workspace, "one", Show("score", lock), lambda _: None)
        project, folds = job.open()
        outcome = job.run(project, folds, local_ray)
        assert (outcome.delivered, outcome.refused) == (False, [])
    assert Bundle.load(outcome.bundle.folder).info["mlflow_run"] == outcome.run_id
    assert (outcome.folder / "scores.json").is_file()
    with TrainJob.resumed("one", workspace, job.show, job.report).record.open() as record:
        record.status = "FINISHED"
    assert (record.delivered, record.refused) == (True, [])
    run = job.record.client.get_run(outcome.run_id)
    assert (run.info.status, run.data.tags["gtvray.digest"]) == ("FINISHED", outcome.bundle.digest)
    assert stored(job.record.client, outcome.run_id) == {"bundle", "scores"}


@pytest.mark.slow
def test_report_is_kept_although_the_database_is_locked(
    workspace: Workspace, phantoms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = random_bundle(tmp_path / "model", 1)
    with locked(workspace.mlflow_database) as lock:
        write = Study.write

        def write_then_lock(study: Study) -> object:
            written = write(study)
            lock()
            return written

        monkeypatch.setattr(Study, "write", write_then_lock)
        result = api.evaluate(_few(phantoms, tmp_path), [str(model.folder)], workspace=workspace)
    assert result.runs is None
    assert "locked by another program" in str(result.failure)
    assert (result.report / "report.html").is_file()
    runs = api.send_report(result.report, workspace=workspace)
    assert list(runs) == ["model"]


def _few(phantoms: Path, folder: Path) -> Path:
    (folder / "few").mkdir()
    (folder / "few" / "1").symlink_to(phantoms / "1")
    return folder / "few"
