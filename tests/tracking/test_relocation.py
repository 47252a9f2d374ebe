"""A workspace that was moved or copied, with its own MLflow store: what is written lands in it, and nowhere else."""

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
# Not a path of MLflow's own making: an underscore is a wildcard of LIKE, and quotes end a text of SQL.
NAMES = ["work space", "o'neill #1", 'a_b "c"', "größe [日本]"]


def tree(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


def connect(place: Workspace) -> MlflowClient:
    return connect_mlflow(place.mlflow_uri, place.artifacts)


def use(place: Workspace, text: str) -> str:
    """Record a run with an artifact, and a model version, as a sweep and a promotion do."""
    client = connect(place)
    experiment = experiment_id(client, "gtvray", place.artifacts)
    run_id = find_or_create_run(client, experiment, text, {})
    file = place.root / "note.txt"
    file.write_text(text)
    client.log_artifact(run_id, str(file), "notes")
    model = client.create_logged_model(experiment, name="model", source_run_id=run_id)
    client.log_model_artifacts(model.model_id, str(place.root / "bundle"))
    client.finalize_logged_model(model.model_id, "READY")
    source = f"models:/{model.model_id}"
    client.create_model_version("model", source=source, run_id=run_id, model_id=model.model_id)
    return run_id


def read(place: Workspace, run_id: str, scratch: Path) -> tuple[str, str]:
    """The run's artifact, and the file of the first model version, as MLflow finds them."""
    uri = connect(place).tracking_uri
    scratch.mkdir()
    note = mlflow.artifacts.download_artifacts(
        run_id=run_id, artifact_path="notes/note.txt", dst_path=str(scratch), tracking_uri=uri
    )
    model = mlflow.artifacts.download_artifacts("models:/model/1", dst_path=str(scratch / "model"), tracking_uri=uri)
    return Path(note).read_text(), (Path(model) / "weights").read_text()


@pytest.fixture
def make(client: MlflowClient, database: Path, tmp_path: Path) -> MakeWorkspace:
    """A workspace in use, by its name."""

    def make_workspace(name: str = "original") -> Workspace:
        place = Workspace(tmp_path / name)
        (place.root / "bundle").mkdir(parents=True)
        (place.root / "bundle" / "weights").write_text("weights")
        # A database is migrated once only: that takes longer than all the rest.
        shutil.copy(database, place.mlflow_database)
        with closing(sqlite3.connect(place.mlflow_database)) as connection:
            connection.execute("DELETE FROM experiments WHERE experiment_id > 0")
            connection.commit()
        connect(place).create_registered_model("model")
        return place

    return make_workspace


@pytest.mark.parametrize("name", NAMES)
def test_a_moved_workspace_is_used_where_it_is(name: str, make: MakeWorkspace, tmp_path: Path) -> None:
    place = make(name)
    run_id = use(place, "before")
    moved = Workspace(place.root.rename(tmp_path / f"{name} moved" if name != NAMES[0] else tmp_path / "elsewhere"))
    assert read(moved, run_id, tmp_path / "scratch") == ("before", "weights")
    use(moved, "after")
    assert not place.root.exists(), "nothing is made at the former place"
    location = Location.read(moved.root)
    assert location is not None
    assert (location.path, location.earlier) == (moved.root, (place.root,))
    (backup,) = moved.root.glob("mlflow.db.before-move-*")
    with closing(sqlite3.connect(backup)) as connection:
        (uri,) = connection.execute("SELECT DISTINCT artifact_uri FROM runs WHERE run_uuid = ?", [run_id]).fetchone()
    assert uri.startswith(place.artifacts.as_uri())


def test_a_workspace_moved_into_its_former_place_and_back(make: MakeWorkspace, tmp_path: Path) -> None:
    place = make("runs")
    run_id = use(place, "before")
    place.root.rename(tmp_path / "aside")
    (tmp_path / "runs").mkdir()
    inner = Workspace((tmp_path / "aside").rename(tmp_path / "runs" / "inner"))
    assert read(inner, run_id, tmp_path / "one") == ("before", "weights")
    inner.root.rename(tmp_path / "aside")
    (tmp_path / "runs").rmdir()
    back = Workspace((tmp_path / "aside").rename(place.root))
    assert read(back, run_id, tmp_path / "two") == ("before", "weights")
    use(back, "after")
    assert {path.name for path in tmp_path.iterdir()} == {"runs", "one", "two"}


def test_a_copy_is_refused_until_it_is_adopted_and_leaves_its_original_alone(
    make: MakeWorkspace, tmp_path: Path
) -> None:
    place = make()
    run_id = use(place, "before")
    copy = Workspace(Path(shutil.copytree(place.root, tmp_path / "the copy", symlinks=True)))
    before = tree(place.root)
    for attempt in (lambda: connect(copy), lambda: copy.lock().__enter__()):
        with pytest.raises(InputError, match="is a copy") as caught:
            attempt()
        assert caught.value.fields["where"] == str(copy.root)
        assert str(place.root) in caught.value.fields["expected"]
        assert f"gtvray workspace adopt --workspace '{copy.root}'" in caught.value.fields["do"]
    adoption = adopt_workspace(copy)
    assert adoption.rewritten > 0
    assert adoption.backup is not None
    with copy.lock():
        use(copy, "in the copy")
    assert read(copy, run_id, tmp_path / "scratch") == ("before", "weights")
    assert tree(place.root) == before
    with closing(sqlite3.connect(copy.mlflow_database)) as connection:
        dump = "\n".join(connection.iterdump())
    assert place.artifacts.as_uri() not in dump
    shutil.rmtree(place.root)
    assert read(copy, run_id, tmp_path / "again") == ("before", "weights")
    assert not place.root.exists()


def test_a_copy_from_before_there_were_records_is_known_by_its_database(make: MakeWorkspace, tmp_path: Path) -> None:
    place = make()
    run_id = use(place, "before")
    (place.root / LOCATION).unlink()
    copy = Workspace(Path(shutil.copytree(place.root, tmp_path / "copy")))
    with copy.lock(), pytest.raises(InputError, match="is a copy"):
        connect(copy)
    shutil.rmtree(place.root)
    assert read(copy, run_id, tmp_path / "scratch") == ("before", "weights")
    use(copy, "after")
    assert not place.root.exists()


def test_another_path_to_the_same_folder_is_no_copy(make: MakeWorkspace, tmp_path: Path) -> None:
    place = make()
    run_id = use(place, "before")
    before = Location.read(place.root)
    (tmp_path / "link").symlink_to(place.root)
    assert read(Workspace(tmp_path / "link"), run_id, tmp_path / "scratch") == ("before", "weights")
    assert before is not None
    assert Location.read(place.root) == before
    # As by a bind mount: the recorded path is another one, and leads to this very folder.
    record = json.loads((place.root / LOCATION).read_text())
    (place.root / LOCATION).write_text(json.dumps({**record, "path": str(tmp_path / "link")}))
    with place.lock():
        assert read(place, run_id, tmp_path / "again") == ("before", "weights")
    assert json.loads((place.root / LOCATION).read_text())["path"] == str(tmp_path / "link")
    assert list(place.root.glob("mlflow.db.before-move-*")) == []


def test_a_former_place_taken_by_another_workspace_is_no_original(make: MakeWorkspace, tmp_path: Path) -> None:
    first, second = make("first"), make("second")
    run_id = use(first, "one")
    moved = Workspace(first.root.rename(tmp_path / "moved"))
    second.root.rename(first.root)
    assert read(moved, run_id, tmp_path / "a") == ("one", "weights")
    taken = first.locate()
    assert taken is not None
    assert (taken.path, taken.earlier) == (first.root, (second.root,))


def test_a_store_of_another_workspace_that_is_a_copy_is_refused(make: MakeWorkspace, tmp_path: Path) -> None:
    """As by tracking.uri: its locations lead to the original as well."""
    place = make()
    use(place, "before")
    copy = Workspace(Path(shutil.copytree(place.root, tmp_path / "copy")))
    with pytest.raises(InputError, match="is a copy"):
        connect_mlflow(copy.mlflow_uri, tmp_path / "mine" / "mlartifacts")


def test_a_database_outside_of_any_workspace_gets_no_record(
    client: MlflowClient, database: Path, tmp_path: Path
) -> None:
    path = Path(shutil.copy(database, tmp_path / "shared.db"))
    open_store(path, tmp_path / "mine" / "mlartifacts")
    assert not (tmp_path / LOCATION).exists()


def test_a_workspace_that_moved_while_it_is_in_use_is_left_alone(make: MakeWorkspace, tmp_path: Path) -> None:
    place = make()
    use(place, "before")
    with place.lock():
        moved = Workspace(place.root.rename(tmp_path / "moved"))
        before = tree(moved.root)
        with pytest.raises(ResourceError, match="another gtvray process"):
            connect(moved)
        assert tree(moved.root) == before


def test_workspace_path_with_a_control_character_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="control characters"):
        Workspace(tmp_path / "line\nbreak")
