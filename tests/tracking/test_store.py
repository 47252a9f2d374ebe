"""Connections to MLflow fail fast with the reason; runs and experiments are found by any name."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from gtvray.errors import InputError, ResourceError
from gtvray.io import Workspace
from gtvray.tracking import connect_mlflow, experiment_id, find_or_create_run

from ..stores import open_store

NAMES = [
    "o'neill",
    'say "hi"',
    "both ' and \"",
    "back\\slash",
    "end\\",
    "100 %",
    "a_b",
    "größe 日本",
    "",
    "x" * 200,
    "`;--",
]


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A port that is bound but does not listen: connections are refused."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


@pytest.mark.timeout(30)
def test_unreachable_server_is_reported_at_once(closed_port: int, tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match="cannot reach MLflow") as caught:
        connect_mlflow(f"http://127.0.0.1:{closed_port}", tmp_path)
    assert str(closed_port) in caught.value.fields["where"]


def test_unsupported_uri_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError):
        connect_mlflow("gopher://somewhere", tmp_path)


def test_unpickling_is_disabled(client: MlflowClient) -> None:
    assert os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] == "false"


@pytest.mark.parametrize(
    "uri", ["sqlite:///a?b/mlflow.db", "sqlite:///a%20b/mlflow.db", "sqlite://", "sqlite:mlflow.db"]
)
def test_path_that_a_database_url_cannot_hold_is_refused(uri: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not the URI of an SQLite database"):
        connect_mlflow(uri, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_run_is_found_by_its_exact_key_only(client: MlflowClient, tmp_path: Path) -> None:
    experiment = experiment_id(client, "keys", tmp_path / "artifacts")
    made = {name: find_or_create_run(client, experiment, name, {"mlflow.runName": name or "-"}) for name in NAMES}
    assert len(set(made.values())) == len(NAMES)
    for name, run_id in made.items():
        assert find_or_create_run(client, experiment, name, {}) == run_id
    for name in ("A_B", "a-b", "aXb", "100 x", "O'NEILL", "größE 日本"):
        assert find_or_create_run(client, experiment, name, {}) not in made.values()


@pytest.mark.parametrize("name", NAMES[:-3])
def test_experiment_can_have_any_name(name: str, client: MlflowClient, tmp_path: Path) -> None:
    found = experiment_id(client, name, tmp_path / "artifacts")
    assert experiment_id(client, name, tmp_path / "artifacts") == found


@pytest.mark.parametrize("name", ["p%20c?q", "#h 'o' \"q\"", "é[b]{x};&"])
def test_artifacts_are_found_in_a_workspace_of_any_name(
    client: MlflowClient, database: Path, tmp_path: Path, name: str
) -> None:
    workspace = Workspace(tmp_path / name)
    workspace.root.mkdir()
    assert client.search_experiments()
    shutil.copyfile(database, workspace.root / "mlflow.db")
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "a.png").write_text("picture")
    own = open_store(workspace.root / "mlflow.db", workspace.artifacts)
    run = find_or_create_run(own, experiment_id(own, "names", workspace.artifacts), "key", {})
    own.log_artifacts(run, str(tmp_path / "report"), "evaluation")
    (tmp_path / "back").mkdir()
    back = Path(own.download_artifacts(run, "evaluation", str(tmp_path / "back")))
    assert (back / "a.png").read_text() == "picture"
    # Nothing was written to a folder with a truncated, encoded or decoded name.
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([name, "back", "report"])
    assert sorted(path.name for path in workspace.root.iterdir()) == ["mlartifacts", "mlflow.db", "workspace.json"]
