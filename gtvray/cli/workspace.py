"""`gtvray workspace`: the folder that everything is written to, after it was copied."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gtvray.cli.common import JsonOption, emit

app = typer.Typer(help="The folder that everything is written to.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Keep `adopt` a command of its own: Typer would make an only command the group itself."""


@app.command("adopt")
def adopt(
    workspace: Annotated[Path, typer.Option("--workspace", help="The copied folder.", envvar="GTVRAY_WORKSPACE")],
    as_json: JsonOption = False,
) -> None:
    """Make a copied workspace a workspace of its own: nothing in it leads to its original any more.

    A copy whose original is still there is refused by every other command, as its records lead to the original's files.
    The MLflow database is backed up before it is changed. A moved workspace needs no command.

    Example: gtvray workspace adopt --workspace gtvray-runs-copy
    """
    from gtvray.errors import NotFoundError
    from gtvray.io import LOCATION, Workspace
    from gtvray.tracking import adopt_workspace

    place = Workspace(workspace)
    if not (place.root / LOCATION).exists() and not place.mlflow_database.exists():
        raise NotFoundError("no workspace in this folder", where=place.root, do="name the copied folder")
    adoption = adopt_workspace(place)
    location = adoption.location
    found = {
        "ok": True,
        "id": location.workspace_id,
        "workspace": str(location.path),
        "earlier": [str(folder) for folder in location.earlier],
        "rewritten": adoption.rewritten,
        "backup": str(adoption.backup) if adoption.backup else None,
    }
    changed = f"{adoption.rewritten} locations corrected in its database"
    backup = f"; the database as it was: {adoption.backup}" if adoption.backup else ""
    emit(found, as_json, f"{location.path} is a workspace of its own; {changed}{backup}")
