"""A tracking store that would refuse the results is detected before anything is prepared."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from gtvray.cli.common import Progress
from gtvray.config import Config, SweepConfig
from gtvray.crossval import TrainJob, TrainRequest
from gtvray.errors import GtvrayError, InputError, ResourceError
from gtvray.io import Workspace
from gtvray.tracking import RunRecorder, connect_mlflow
from gtvray.tuning import SweepJob

from ..stores import copied_workspace

SWEEP = SweepConfig.model_validate({"trials": 2, "space": {"optimizer.lr": {"low": 0.001, "high": 0.01}}})
Spoil = Callable[[Workspace, MlflowClient], None]


@pytest.fixture
def workspace(client: MlflowClient, tmp_path: Path) -> Workspace:
    """A workspace with a tracking store."""
    return copied_workspace(client, tmp_path / "runs")


def recorded(place: Workspace) -> RunRecorder:
    recorder = RunRecorder(
        connect_mlflow(place.mlflow_uri, place.artifacts), "gtvray", "one", place.root / "spool.jsonl", place.artifacts
    )
    recorder.start("t0", {}, {})
    assert recorder.close(60)
    return recorder


def no_experiment(place: Workspace, client: MlflowClient) -> None:
    client.delete_experiment(client.get_run(recorded(place).run_id).info.experiment_id)


def no_parent(place: Workspace, client: MlflowClient) -> None:
    client.delete_run(recorded(place).run_id)


def no_child(place: Workspace, client: MlflowClient) -> None:
    client.delete_run(recorded(place).trial_run_id("t0"))


def newer(place: Workspace, client: MlflowClient) -> None:
    with closing(sqlite3.connect(place.mlflow_database)) as connection:
        connection.execute("UPDATE alembic_version SET version_num = 'ffff00000001'")
        connection.commit()


@pytest.mark.parametrize("kind", ["sweep", "train"])
@pytest.mark.parametrize(
    ("spoil", "error", "what"),
    [
        (no_experiment, InputError, "experiment was deleted"),
        (no_parent, InputError, "run was deleted"),
        (no_child, InputError, "run was deleted"),
        (newer, ResourceError, "newer MLflow"),
    ],
)
def test_unusable_tracking_store_is_refused_before_preparing(
    kind: str, spoil: Spoil, error: type[GtvrayError], what: str, workspace: Workspace, phantoms: Path
) -> None:
    spoil(workspace, connect_mlflow(workspace.mlflow_uri, workspace.artifacts))
    show = Progress({}, quiet=True)
    sweep = SweepJob(SWEEP, Config(), workspace, "one", show)
    training = TrainJob(TrainRequest(Config(), phantoms), workspace, "one", show, lambda _: None)
    with pytest.raises(error, match=what):
        _ = sweep.open(phantoms) if kind == "sweep" else training.open()
    assert not workspace.cache.exists()
    assert not workspace.splits.exists()
