"""Reaching MLflow, or an error at once that says why not."""

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
def silent_port() -> Iterator[int]:
    """Taken, but nobody answers: connections are refused."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


@pytest.mark.timeout(30)
def test_a_server_that_is_not_there_is_told_of_at_once(silent_port: int, tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match="cannot reach MLflow") as caught:
        connect_mlflow(f"http://127.0.0.1:{silent_port}", tmp_path)
    assert str(silent_port) in caught.value.fields["where"]


def test_a_uri_of_no_known_kind_is_the_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(InputError):
        connect_mlflow("gopher://somewhere", tmp_path)


def test_nothing_is_ever_unpickled(client: MlflowClient) -> None:
    assert os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] == "false"


@pytest.mark.parametrize(
    "uri", ["sqlite:///a?b/mlflow.db", "sqlite:///a%20b/mlflow.db", "sqlite://", "sqlite:mlflow.db"]
)
def test_a_path_that_the_url_of_a_database_cannot_hold_is_refused(uri: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not the URI of an SQLite database"):
        connect_mlflow(uri, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_run_is_found_by_any_key_and_by_no_other(client: MlflowClient, tmp_path: Path) -> None:
    experiment = experiment_id(client, "keys", tmp_path / "artifacts")
    made = {name: find_or_create_run(client, experiment, name, {"mlflow.runName": name or "-"}) for name in NAMES}
    assert len(set(made.values())) == len(NAMES)
    for name, run_id in made.items():
        assert find_or_create_run(client, experiment, name, {}) == run_id
    for name in ("A_B", "a-b", "aXb", "100 x", "O'NEILL", "größE 日本"):
        assert find_or_create_run(client, experiment, name, {}) not in made.values()


@pytest.mark.parametrize("name", NAMES[:-3])
def test_an_experiment_may_have_any_name(name: str, client: MlflowClient, tmp_path: Path) -> None:
    found = experiment_id(client, name, tmp_path / "artifacts")
    assert experiment_id(client, name, tmp_path / "artifacts") == found


@pytest.mark.parametrize("name", ["p%20c?q", "#h 'o' \"q\"", "é[b]{x};&"])
def test_a_workspace_of_any_name_keeps_its_runs(
    client: MlflowClient, database: Path, tmp_path: Path, name: str
) -> None:
    place = Workspace(tmp_path / name)
    place.root.mkdir()
    assert client.search_experiments()
    shutil.copyfile(database, place.root / "mlflow.db")
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "a.png").write_text("picture")
    there = open_store(place.root / "mlflow.db", place.artifacts)
    run = find_or_create_run(there, experiment_id(there, "names", place.artifacts), "key", {})
    there.log_artifacts(run, str(tmp_path / "report"), "evaluation")
    (tmp_path / "back").mkdir()
    back = Path(there.download_artifacts(run, "evaluation", str(tmp_path / "back")))
    assert (back / "a.png").read_text() == "picture"
    # Nothing in a folder of a name that was cut short, encoded or decoded.
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([name, "back", "report"])
    assert sorted(path.name for path in place.root.iterdir()) == ["mlartifacts", "mlflow.db", "workspace.json"]
