"""Updates of the absolute artifact locations in a workspace's MLflow database after the workspace was moved."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import unquote, urlparse

from gtvray.io import (
    Location,
    Workspace,
    adopted_location,
    atomic_path,
    current_location,
    require_no_original,
    same_folder,
)
from gtvray.tracking.database import BUSY_TIMEOUT_S, database_errors

# Every column in which MLflow stores an artifact location.
_COLUMNS = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)
_ARTIFACTS = "mlartifacts"


@dataclass(frozen=True)
class Adoption:
    """The result of adopting a copied workspace.

    Attributes:
        location: the workspace's new location record.
        rewritten: number of updated locations in the database.
        backup: backup of the database; None if nothing was updated.
    """

    location: Location
    rewritten: int
    backup: Path | None


def update_locations(workspace: Workspace, writing: bool = True) -> None:
    """Update the locations in a workspace's database to the workspace's path, before MLflow opens it.

    Args:
        workspace: the workspace that holds the database, which may not exist yet.
        writing: require write access. A reader may use a workspace that is mounted read-only at another path, since
            it contains the downloaded bundles and golden cases.

    Raises:
        InputError: the workspace is a copy, and its original still exists.
        ResourceError: the database cannot be updated.
    """
    if not writing and not os.access(workspace.root, os.W_OK) and workspace.root.exists():
        current_location(workspace.root)
        return
    location = workspace.locate()
    if location is None:
        location = _first_location(workspace)
        workspace.root.mkdir(parents=True, exist_ok=True)
        location.write()
    if location.earlier and workspace.mlflow_database.is_file():
        _rewrite(workspace.mlflow_database, location)


def adopt_workspace(workspace: Workspace) -> Adoption:
    """Make a copied workspace independent of its original.

    Args:
        workspace: the copy.

    Raises:
        NotFoundError: the folder holds no workspace.
        ResourceError: another process uses the workspace, or the database cannot be updated.
    """
    database = workspace.mlflow_database
    with workspace.hold():
        found = recorded_roots(database) if database.is_file() else []
        location = adopted_location(workspace.root, found)
        location.write()
        rewritten, backup = _rewrite(database, location) if database.is_file() else (0, None)
    return Adoption(location, rewritten, backup)


def recorded_roots(database: Path) -> list[Path]:
    """Return the roots of the workspaces that a database's experiments store artifacts in."""
    with database_errors(database), closing(sqlite3.connect(database, timeout=BUSY_TIMEOUT_S)) as connection:
        if not _has_column(connection, "experiments", "artifact_location"):
            return []
        rows = connection.execute("SELECT DISTINCT artifact_location FROM experiments").fetchall()
    locations = [urlparse(row[0]) for row in rows if row[0]]
    paths = [Path(unquote(each.path)) for each in locations if each.scheme == "file"]
    return list(dict.fromkeys(path.parent for path in paths if path.name == _ARTIFACTS))


def _first_location(workspace: Workspace) -> Location:
    """Return the location of a workspace without a record: a new one, or one created before records existed."""
    database = workspace.mlflow_database
    roots = recorded_roots(database) if database.is_file() else []
    others = [root for root in roots if root != workspace.root and not same_folder(root, workspace.root)]
    for root in others:
        require_no_original(root, workspace.root, None)
    return Location.new(workspace.root, others)


def _rewrite(database: Path, location: Location) -> tuple[int, Path | None]:
    """Update every location below an earlier path in one transaction, after a backup."""
    moves = [(f"{old.as_uri()}/", f"{location.path.as_uri()}/") for old in location.earlier]
    with database_errors(database), closing(sqlite3.connect(database, timeout=BUSY_TIMEOUT_S)) as connection:
        columns = [column for column in _COLUMNS if _has_column(connection, *column)]
        if not any(_has_stale(connection, *column, *move) for column in columns for move in moves):
            return 0, None
        backup = _back_up(connection, database)
        with connection:
            connection.execute("BEGIN IMMEDIATE")
            rewritten = sum(_update(connection, *column, *move) for column in columns for move in moves)
    return rewritten, backup


def _has_stale(connection: sqlite3.Connection, table: str, column: str, old: str, new: str) -> bool:
    where, values = _below(column, old, new)
    return connection.execute(f"SELECT 1 FROM {table} WHERE {where}", values).fetchone() is not None  # noqa: S608


def _update(connection: sqlite3.Connection, table: str, column: str, old: str, new: str) -> int:
    where, values = _below(column, old, new)
    change = f"UPDATE {table} SET {column} = ? || substr({column}, ?) WHERE {where}"  # noqa: S608
    return connection.execute(change, (new, len(old) + 1, *values)).rowcount


def _below(column: str, old: str, new: str) -> tuple[str, tuple[object, ...]]:
    # substr compares exactly; LIKE has wildcards and ignores case.
    where, values = f"substr({column}, 1, ?) = ?", (len(old), old)
    if not new.startswith(old):
        return where, values
    # The workspace was moved into a folder below its former path: locations that are already updated are kept.
    return f"{where} AND substr({column}, 1, ?) <> ?", (*values, len(new), new)


def _has_column(connection: sqlite3.Connection, table: str, column: str) -> bool:
    return column in [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]


def _back_up(connection: sqlite3.Connection, database: Path) -> Path:
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S-%f")
    backup = database.with_name(f"{database.name}.before-move-{stamp}")
    with atomic_path(backup) as temporary, closing(sqlite3.connect(temporary)) as copy:
        connection.backup(copy)
    return backup
