"""`gtvray workspace`: maintenance of the workspace folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gtvray.cli.common import JsonOption, emit

app = typer.Typer(help="Make a copied workspace independent of its original.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Keep `adopt` a subcommand: without a callback Typer turns a single command into the group itself."""


@app.command("adopt")
def adopt(
    workspace_path: Annotated[
        Path, typer.Option("--workspace", help="The copied workspace.", envvar="GTVRAY_WORKSPACE")
    ],
    as_json: JsonOption = False,
) -> None:
    """Make a copied workspace independent of its original.

    Every other command refuses a copy whose original still exists, since its records point to the original's files.
    The MLflow database is backed up before it is changed. A moved workspace needs no command.

    Example: gtvray workspace adopt --workspace gtvray-runs-copy
    """
    from gtvray.errors import NotFoundError
    from gtvray.io import LOCATION, Workspace
    from gtvray.tracking import adopt_workspace

    workspace = Workspace(workspace_path)
    if not (workspace.root / LOCATION).exists() and not workspace.mlflow_database.exists():
        raise NotFoundError("this folder is not a workspace", where=workspace.root, do="name the copied workspace")
    adoption = adopt_workspace(workspace)
    location = adoption.location
    found = {
        "ok": True,
        "id": location.workspace_id,
        "workspace": str(location.path),
        "earlier": [str(folder) for folder in location.earlier],
        "rewritten": adoption.rewritten,
        "backup": str(adoption.backup) if adoption.backup else None,
    }
    changed = f"{adoption.rewritten} locations updated in its database"
    backup = f"; backup of the database: {adoption.backup}" if adoption.backup else ""
    emit(found, as_json, f"{location.path} is independent of its original; {changed}{backup}")
