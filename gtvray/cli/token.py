"""`gtvray token`: tokens of the clients of an endpoint."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from gtvray.cli.common import WORKSPACE, JsonOption, WorkspaceOption, emit, table
from gtvray.cli.settings import ListGroup

app = typer.Typer(
    cls=ListGroup,
    help="Add, list and revoke the tokens of clients of an endpoint.",
)
NameArgument = Annotated[str, typer.Argument(help="Name of the client, for the audit log.")]


class RoleName(StrEnum):
    """Names of roles."""

    SEGMENT = "segment"
    JOBS = "jobs"
    ADMIN = "admin"


@app.command("add")
def add(
    name: NameArgument,
    role: Annotated[RoleName, typer.Option("--role", help="What the client may do.")] = RoleName.SEGMENT,
    model: Annotated[
        list[str] | None,
        typer.Option("--model", help="Name of a registered model that it may use; by default every one."),
    ] = None,
    workspace: WorkspaceOption = WORKSPACE,
    as_json: JsonOption = False,
) -> None:
    """Create a token for a client.

    It is printed once: only its SHA-256 is stored.

    Example: gtvray token add planning-station --role jobs
    """
    from gtvray.io import Workspace
    from gtvray.serving.gateway.tokens import Role, TokenFile

    token = TokenFile(Workspace(workspace).tokens).add(name, Role[role.name], model or ())
    emit({"name": name, "role": role.value, "models": model or [], "token": token}, as_json, token)


@app.command("list")
def list_(workspace: WorkspaceOption = WORKSPACE, as_json: JsonOption = False) -> None:
    """List the clients that have a token.

    Example: gtvray token list
    """
    from gtvray.io import Workspace
    from gtvray.serving.gateway.tokens import TokenFile

    rows = [
        {"name": token.name, "role": token.role, "models": list(token.models), "created": token.created}
        for token in TokenFile(Workspace(workspace).tokens).read()
    ]
    columns = {"name": "client", "role": "role", "models": "models", "created": "created"}
    shown = [{**row, "models": ", ".join(row["models"]) or "all"} for row in rows]
    emit(rows, as_json, table(shown, columns) if rows else "no client has a token")


@app.command("revoke")
def revoke(name: NameArgument, workspace: WorkspaceOption = WORKSPACE, as_json: JsonOption = False) -> None:
    """Revoke the token of a client.

    A running endpoint refuses it within a second.

    Example: gtvray token revoke planning-station
    """
    from gtvray.io import Workspace
    from gtvray.serving.gateway.tokens import TokenFile

    TokenFile(Workspace(workspace).tokens).revoke(name)
    emit({"revoked": name}, as_json, f"revoked the token of {name}")
