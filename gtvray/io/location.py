"""The recorded location of a workspace: distinguishes a copy from its original, and detects a move.

`workspace.json` holds an id, the path of the folder, and its earlier paths. Absolute paths elsewhere in a workspace,
such as in MLflow's database, are translated with the earlier paths when they are read.
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


@dataclass(frozen=True)
class Location:
    """Current and earlier paths of a workspace.

    Attributes:
        workspace_id: unique id; an adopted copy gets a new one.
        path: the folder, absolute and without symbolic links.
        earlier: earlier paths of this workspace or of the one that it was copied from.
    """

    workspace_id: str
    path: Path
    earlier: tuple[Path, ...] = ()

    @classmethod
    def new(cls, root: Path, earlier: Iterable[Path] = ()) -> Location:
        """Create the location of a workspace without a record."""
        return cls(uuid.uuid4().hex, root, tuple(earlier))

    @classmethod
    def read(cls, root: Path) -> Location | None:
        """Read the location recorded in a folder; None if there is no record.

        Raises:
            InputError: the record is unreadable.
        """
        try:
            stored: Any = read_json(root / LOCATION)
            earlier = tuple(Path(each) for each in stored["earlier"])
            return cls(str(stored["id"]), Path(stored["path"]), earlier)
        except NotFoundError:
            return None
        except (InputError, OSError, KeyError, TypeError) as error:
            raise InputError(
                "workspace location record is unreadable",
                where=root / LOCATION,
                found=error,
                do=f"restore the file from a backup, or run `{adopt_command(root)}` to write a new one",
            ) from error

    def write(self) -> None:
        """Write the record into the workspace."""
        stored = {"schema_version": _SCHEMA_VERSION, "id": self.workspace_id, "path": str(self.path)}
        write_json(self.path / LOCATION, {**stored, "earlier": [str(each) for each in self.earlier]})

    def moved_to(self, root: Path, workspace_id: str | None = None, also: Iterable[Path] = ()) -> Location:
        """Return the location after a move to another folder.

        Args:
            root: the new folder.
            workspace_id: a new id; None keeps the current one.
            also: further earlier paths.
        """
        known = dict.fromkeys((*self.earlier, *also, self.path))
        earlier = tuple(each for each in known if each != root)
        return Location(workspace_id or self.workspace_id, root, earlier)

    def follow(self, path: Path) -> Path:
        """Translate a path below an earlier path of this workspace; other paths are returned unchanged."""
        if not path.is_relative_to(self.path):
            for folder in self.earlier:
                if path.is_relative_to(folder):
                    return self.path / path.relative_to(folder)
        return path


def current_location(root: Path) -> Location | None:
    """Determine the current location of a workspace without writing it; None if none is recorded.

    Args:
        root: the workspace's folder, absolute and without symbolic links.

    Raises:
        InputError: the workspace is a copy of an existing workspace, or its record is unreadable.
    """
    recorded = Location.read(root)
    if recorded is None or recorded.path == root or same_folder(recorded.path, root):
        return recorded
    require_no_original(recorded.path, root, recorded.workspace_id)
    return recorded.moved_to(root)


def adopted_location(root: Path, found: Iterable[Path] = ()) -> Location:
    """Return the location that makes a copy an independent workspace, without writing it.

    Args:
        root: the copy's folder.
        found: paths of the original found in the copy's files.
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
    """Refuse a workspace whose original still exists at the recorded path.

    Args:
        original: the recorded path.
        root: the workspace's folder.
        workspace_id: id in the record; None for a workspace created before ids were recorded.

    Raises:
        InputError: the original exists.
    """
    if _holds_workspace(original, workspace_id):
        raise InputError(
            "this workspace is a copy of an existing workspace",
            where=root,
            expected=f"the original, {original}",
            found="a copy whose records refer to the original's files",
            do=f"use the original, or make the copy an independent workspace: {adopt_command(root)}",
        )


def adopt_command(root: Path) -> str:
    """Return the shell command that makes a copy an independent workspace."""
    return f"gtvray workspace adopt --workspace {shlex.quote(str(root))}"


def same_folder(one: Path, other: Path) -> bool:
    """Whether two paths are the same folder, for example through a symbolic link or a bind mount."""
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
        # An unreadable record could be the original's.
        return True
    return found is not None and found.workspace_id == workspace_id
