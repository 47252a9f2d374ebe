"""The place of a workspace, recorded in it: a copy is told from its original, and a moved workspace is recognised.

`workspace.json` holds an id, the folder's path, and the paths where it was before. Whatever else in a workspace has
absolute paths, such as MLflow's database, is corrected by the earlier paths when it is opened.
"""

from __future__ import annotations

import os
import shlex
import uuid
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gtvray.errors import InputError, NotFoundError
from gtvray.io.jsonfile import read_json, write_json

LOCATION = "workspace.json"
_SCHEMA_VERSION = 1
# SQLAlchemy and MLflow disagree on how these are written in the URL of an SQLite database.


@dataclass(frozen=True)
class Location:
    """Where a workspace is and was.

    Attributes:
        workspace_id: of this workspace and of no copy that was adopted.
        path: the folder, absolute and without symbolic links.
        earlier: where it, or the workspace it was copied from, was before.
    """

    workspace_id: str
    path: Path
    earlier: tuple[Path, ...] = ()

    @classmethod
    def new(cls, root: Path, earlier: Iterable[Path] = ()) -> Location:
        """The location of a workspace that has none recorded."""
        return cls(uuid.uuid4().hex, root, tuple(earlier))

    @classmethod
    def read(cls, root: Path) -> Location | None:
        """The location recorded in a folder; None where there is no record.

        Raises:
            InputError: the record cannot be read.
        """
        try:
            stored: Any = read_json(root / LOCATION)
            earlier = tuple(Path(each) for each in stored["earlier"])
            return cls(str(stored["id"]), Path(stored["path"]), earlier)
        except NotFoundError:
            return None
        except (InputError, OSError, KeyError, TypeError) as error:
            raise InputError(
                "the record of this workspace's location cannot be read",
                where=root / LOCATION,
                found=error,
                do=f"put a copy of the file back, or run `{adopt_command(root)}`, which writes a new one",
            ) from error

    def write(self) -> None:
        """Record it in the workspace's folder."""
        stored = {"schema_version": _SCHEMA_VERSION, "id": self.workspace_id, "path": str(self.path)}
        write_json(self.path / LOCATION, {**stored, "earlier": [str(each) for each in self.earlier]})

    def moved_to(self, root: Path, workspace_id: str | None = None, also: Iterable[Path] = ()) -> Location:
        """The location after a move to another folder.

        Args:
            root: the folder.
            workspace_id: a new id; None keeps the present one.
            also: further folders that it was in.
        """
        known = dict.fromkeys((*self.earlier, *also, self.path))
        earlier = tuple(each for each in known if each != root)
        return Location(workspace_id or self.workspace_id, root, earlier)

    def follow(self, path: Path) -> Path:
        """A path within an earlier folder of this workspace as it is now; any other path as it is."""
        if not path.is_relative_to(self.path):
            for folder in self.earlier:
                if path.is_relative_to(folder):
                    return self.path / path.relative_to(folder)
        return path


def current_location(root: Path) -> Location | None:
    """The location of a workspace as it is now; None where none is recorded. Nothing is written.

    Args:
        root: the workspace's folder, absolute and without symbolic links.

    Raises:
        InputError: the workspace is a copy, and its original is still there; or its path cannot be used.
    """
    recorded = Location.read(root)
    if recorded is None or recorded.path == root or same_folder(recorded.path, root):
        return recorded
    require_no_original(recorded.path, root, recorded.workspace_id)
    return recorded.moved_to(root)


def adopted_location(root: Path, found: Iterable[Path] = ()) -> Location:
    """The location of a copy that is to be a workspace of its own. Nothing is written.

    Args:
        root: the copy's folder.
        found: folders of the original that its files name.
    """
    try:
        recorded = Location.read(root)
    except InputError:
        recorded = None
    if recorded is None:
        return Location.new(root, (each for each in found if each != root))
    if recorded.path == root or same_folder(recorded.path, root):
        return replace(recorded, earlier=tuple(dict.fromkeys((*recorded.earlier, *(f for f in found if f != root)))))
    return recorded.moved_to(root, uuid.uuid4().hex, found)


def require_no_original(original: Path, root: Path, workspace_id: str | None) -> None:
    """Refuse a workspace whose original is still in its recorded place.

    Args:
        original: the recorded place.
        root: the folder it was found in.
        workspace_id: of both; None for a workspace from before there were ids.

    Raises:
        InputError: it is a copy.
    """
    if _holds_workspace(original, workspace_id):
        raise InputError(
            "this workspace is a copy, and its original is still there",
            where=root,
            expected=f"the original, {original}",
            found="a copy whose records lead to the original's files",
            do=f"use the original, or make the copy a workspace of its own: {adopt_command(root)}",
        )


def adopt_command(root: Path) -> str:
    """The command that makes a copy a workspace of its own, ready to be pasted."""
    return f"gtvray workspace adopt --workspace {shlex.quote(str(root))}"


def same_folder(one: Path, other: Path) -> bool:
    """Whether two paths lead to one folder, as they do by a symbolic link or a bind mount."""
    try:
        return os.path.samefile(one, other)
    except OSError:
        return False


def _holds_workspace(folder: Path, workspace_id: str | None) -> bool:
    try:
        if workspace_id is None:
            return (folder / "mlflow.db").exists()
        found = Location.read(folder)
    except (InputError, OSError):
        # Something is there that cannot be read; it could be the original.
        return True
    return found is not None and found.workspace_id == workspace_id
