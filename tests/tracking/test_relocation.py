"""Workspaces that were moved or copied: all writes go to the workspace itself, and a copy must be adopted first."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import mlflow
import pytest
from mlflow.tracking import MlflowClient

from gtvray.errors import InputError, ResourceError
from gtvray.io import LOCATION, Location, Workspace
from gtvray.tracking import adopt_workspace, connect_mlflow, experiment_id, find_or_create_run

from ..stores import open_store

MakeWorkspace = Callable[..., Workspace]
# An underscore is a wildcard of SQL's LIKE, and a quote ends an SQL string.
NAMES = ["work space", "o'neill #1", 'a_b "c"', "größe [日本]"]


def tree(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


def connect(workspace: Workspace) -> MlflowClient:
    return connect_mlflow(workspace.mlflow_uri, workspace.artifacts)


def use(workspace: Workspace, text: str) -> str:
    """Record a run with an artifact and a model version, as a sweep and a promotion do; return the run's id."""
    client = connect(workspace)
    experiment = experiment_id(client, "gtvray", workspace.artifacts)
    run_id = find_or_create_run(client, experiment, text, {})
    file = workspace.root / "note.txt"
    file.write_text(text)
    client.log_artifact(run_id, str(file), "notes")
    model = client.create_logged_model(experiment, name="model", source_run_id=run_id)
    client.log_model_artifacts(model.model_id, str(workspace.root / "bundle"))
    client.finalize_logged_model(model.model_id, "READY")
    source = f"models:/{model.model_id}"
    client.create_model_version("model", source=source, run_id=run_id, model_id=model.model_id)
    return run_id


def read(workspace: Workspace, run_id: str, scratch: Path) -> tuple[str, str]:
    """Download the run's artifact and the file of the first model version through MLflow; return their texts."""
    uri = connect(workspace).tracking_uri
    scratch.mkdir()
    note = mlflow.artifacts.download_artifacts(
        run_id=run_id, artifact_path="notes/note.txt", dst_path=str(scratch), tracking_uri=uri
    )
    model = mlflow.artifacts.download_artifacts("models:/model/1", dst_path=str(scratch / "model"), tracking_uri=uri)
    return Path(note).read_text(), (Path(model) / "weights").read_text()


@pytest.fixture
def make(client: MlflowClient, database: Path, tmp_path: Path) -> MakeWorkspace:
    """A factory of workspaces with a database and a registered model."""

    def make_workspace(name: str = "original") -> Workspace:
        workspace = Workspace(tmp_path / name)
        (workspace.root / "bundle").mkdir(parents=True)
        (workspace.root / "bundle" / "weights").write_text("weights")
        # A copy of a migrated database: migrations take longer than the whole test.
        shutil.copy(database, workspace.mlflow_database)
        with closing(sqlite3.connect(workspace.mlflow_database)) as connection:
            connection.execute("DELETE FROM experiments WHERE experiment_id > 0")
            connection.commit()
        connect(workspace).create_registered_model("model")
        return workspace

    return make_workspace


@pytest.mark.parametrize("name", NAMES)
def test_moved_workspace_is_used_at_its_new_path(name: str, make: MakeWorkspace, tmp_path: Path) -> None:
    workspace = make(name)
    run_id = use(workspace, "before")
    moved = Workspace(workspace.root.rename(tmp_path / f"{name} moved" if name != NAMES[0] else tmp_path / "elsewhere"))
    assert read(moved, run_id, tmp_path / "scratch") == ("before", "weights")
    use(moved, "after")
    assert not workspace.root.exists(), "nothing is created at the former path"
    location = Location.read(moved.root)
    assert location is not None
    assert (location.path, location.earlier) == (moved.root, (workspace.root,))
    (backup,) = moved.root.glob("mlflow.db.before-move-*")
    with closing(sqlite3.connect(backup)) as connection:
        (uri,) = connection.execute("SELECT DISTINCT artifact_uri FROM runs WHERE run_uuid = ?", [run_id]).fetchone()
    assert uri.startswith(workspace.artifacts.as_uri())


def test_workspace_can_move_below_its_former_path_and_back(make: MakeWorkspace, tmp_path: Path) -> None:
    workspace = make("runs")
    run_id = use(workspace, "before")
    workspace.root.rename(tmp_path / "aside")
    (tmp_path / "runs").mkdir()
    inner = Workspace((tmp_path / "aside").rename(tmp_path / "runs" / "inner"))
    assert read(inner, run_id, tmp_path / "one") == ("before", "weights")
    inner.root.rename(tmp_path / "aside")
    (tmp_path / "runs").rmdir()
    back = Workspace((tmp_path / "aside").rename(workspace.root))
    assert read(back, run_id, tmp_path / "two") == ("before", "weights")
    use(back, "after")
    assert {path.name for path in tmp_path.iterdir()} == {"runs", "one", "two"}


def test_copy_is_refused_until_it_is_adopted_and_never_changes_its_original(
    make: MakeWorkspace, tmp_path: Path
) -> None:
    workspace = make()
    run_id = use(workspace, "before")
    copy = Workspace(Path(shutil.copytree(workspace.root, tmp_path / "the copy", symlinks=True)))
    before = tree(workspace.root)
    for attempt in (lambda: connect(copy), lambda: copy.lock().__enter__()):
        with pytest.raises(InputError, match="is a copy") as caught:
            attempt()
        assert caught.value.fields["where"] == str(copy.root)
        assert str(workspace.root) in caught.value.fields["expected"]
        assert f"gtvray workspace adopt --workspace '{copy.root}'" in caught.value.fields["do"]
    adoption = adopt_workspace(copy)
    assert adoption.rewritten > 0
    assert adoption.backup is not None
    with copy.lock():
        use(copy, "in the copy")
    assert read(copy, run_id, tmp_path / "scratch") == ("before", "weights")
    assert tree(workspace.root) == before
    with closing(sqlite3.connect(copy.mlflow_database)) as connection:
        dump = "\n".join(connection.iterdump())
    assert workspace.artifacts.as_uri() not in dump
    shutil.rmtree(workspace.root)
    assert read(copy, run_id, tmp_path / "again") == ("before", "weights")
    assert not workspace.root.exists()


def test_copy_without_a_location_record_is_recognised_by_its_database(make: MakeWorkspace, tmp_path: Path) -> None:
    workspace = make()
    run_id = use(workspace, "before")
    (workspace.root / LOCATION).unlink()
    copy = Workspace(Path(shutil.copytree(workspace.root, tmp_path / "copy")))
    with copy.lock(), pytest.raises(InputError, match="is a copy"):
        connect(copy)
    shutil.rmtree(workspace.root)
    assert read(copy, run_id, tmp_path / "scratch") == ("before", "weights")
    use(copy, "after")
    assert not workspace.root.exists()


def test_another_path_to_the_same_folder_is_not_a_copy(make: MakeWorkspace, tmp_path: Path) -> None:
    workspace = make()
    run_id = use(workspace, "before")
    before = Location.read(workspace.root)
    (tmp_path / "link").symlink_to(workspace.root)
    assert read(Workspace(tmp_path / "link"), run_id, tmp_path / "scratch") == ("before", "weights")
    assert before is not None
    assert Location.read(workspace.root) == before
    # As by a bind mount: the recorded path differs and leads to the same folder.
    record = json.loads((workspace.root / LOCATION).read_text())
    (workspace.root / LOCATION).write_text(json.dumps({**record, "path": str(tmp_path / "link")}))
    with workspace.lock():
        assert read(workspace, run_id, tmp_path / "again") == ("before", "weights")
    assert json.loads((workspace.root / LOCATION).read_text())["path"] == str(tmp_path / "link")
    assert list(workspace.root.glob("mlflow.db.before-move-*")) == []


def test_another_workspace_at_the_former_path_is_not_the_original(make: MakeWorkspace, tmp_path: Path) -> None:
    first, second = make("first"), make("second")
    run_id = use(first, "one")
    moved = Workspace(first.root.rename(tmp_path / "moved"))
    second.root.rename(first.root)
    assert read(moved, run_id, tmp_path / "a") == ("one", "weights")
    taken = first.locate()
    assert taken is not None
    assert (taken.path, taken.earlier) == (first.root, (second.root,))


def test_store_of_a_copied_workspace_is_refused_from_another_workspace(make: MakeWorkspace, tmp_path: Path) -> None:
    """As by tracking.uri: its artifact locations still point to the original."""
    workspace = make()
    use(workspace, "before")
    copy = Workspace(Path(shutil.copytree(workspace.root, tmp_path / "copy")))
    with pytest.raises(InputError, match="is a copy"):
        connect_mlflow(copy.mlflow_uri, tmp_path / "mine" / "mlartifacts")


def test_database_outside_a_workspace_gets_no_location_record(
    client: MlflowClient, database: Path, tmp_path: Path
) -> None:
    path = Path(shutil.copy(database, tmp_path / "shared.db"))
    open_store(path, tmp_path / "mine" / "mlartifacts")
    assert not (tmp_path / LOCATION).exists()


def test_workspace_moved_while_in_use_is_not_changed(make: MakeWorkspace, tmp_path: Path) -> None:
    workspace = make()
    use(workspace, "before")
    with workspace.lock():
        moved = Workspace(workspace.root.rename(tmp_path / "moved"))
        before = tree(moved.root)
        with pytest.raises(ResourceError, match="another gtvray process"):
            connect(moved)
        assert tree(moved.root) == before


def test_workspace_path_with_a_control_character_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="control characters"):
        Workspace(tmp_path / "line\nbreak")
