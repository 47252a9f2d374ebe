"""`gtvray serve`: serve a registered model or a bundle over HTTP until Ctrl-C, and ask an endpoint how it is."""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from pathlib import Path
from threading import Event
from typing import Annotated, Any

import typer

from gtvray import NOTICE
from gtvray.cli.common import (
    WORKSPACE,
    AddressOption,
    ConfigOption,
    JsonOption,
    ModelOption,
    Progress,
    SetOption,
    WorkspaceOption,
    emit,
)
from gtvray.cli.settings import RunGroup, SettingsCommand

app = typer.Typer(cls=RunGroup, help="Serve a model over HTTP.")


@app.command(RunGroup.default, cls=SettingsCommand)
def serve(
    model: ModelOption = "champion",
    address: AddressOption = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on.")] = None,
    token_file: Annotated[
        Path | None, typer.Option(help="File with the bearer token, readable on every node of the cluster.")
    ] = None,
    workspace: WorkspaceOption = WORKSPACE,
    config: ConfigOption = None,
    override: SetOption = None,
) -> None:
    """Serve a model over HTTP.

    Clients need the bearer token in GTVRAY_TOKEN, or the generated one that is printed.

    The word "run" may be left out: gtvray serve --port 8080.

    On a cluster of several nodes each node needs the token: in --token-file, or in GTVRAY_TOKEN before `ray start`.

    Example: GTVRAY_TOKEN=secret gtvray serve run --port 8080
    """
    from gtvray.api import Endpoint
    from gtvray.config import load_config
    from gtvray.runtime import connect, require_port
    from gtvray.serving.arguments import read_token

    base = load_config(config, [*(override or []), *([f"serving.port={port}"] if port is not None else [])])
    require_port(base.serving.host, base.serving.port, "--port")
    endpoint = Endpoint(model, workspace=workspace, config=base)
    given = read_token(token_file) if token_file else os.environ.get("GTVRAY_TOKEN")
    token = given or secrets.token_urlsafe(24)
    progress = Progress({"ray": 8, "serve": 15}, quiet=False)
    with progress.live():
        progress.begin("ray", "connecting to Ray")
        with connect(address):
            progress.begin("serve", "starting the endpoint")
            server = endpoint.start(token, token_file)
            try:
                server.wait_ready()
                unchecked = "" if endpoint.golden else "; masks not checked, as the bundle has no golden cases"
                generated = "" if given else f"; bearer token: {token}"
                served = f"version {endpoint.version}{' and every later champion' if endpoint.follows else ''}"
                typer.echo(f"serving {served} at {server.url} until Ctrl-C{unchecked}{generated}", err=True)
                Event().wait()
            except KeyboardInterrupt:
                typer.echo("stopping", err=True)
            finally:
                server.stop()


@app.command("status")
def status(
    server: Annotated[str, typer.Option(help="Address of the endpoint.")] = "http://127.0.0.1:8000",
    token: Annotated[str, typer.Option(envvar="GTVRAY_TOKEN", help="Its bearer token.")] = "",
    as_json: JsonOption = False,
) -> None:
    """Show the state of a running endpoint.

    This is whether it is ready, which version it serves, and how many jobs wait. The exit code is 0 if it is ready.

    Example: gtvray serve status --server http://127.0.0.1:8000
    """
    from gtvray.errors import NotFoundError, NotReadyError, NotReproducedError
    from gtvray.serving import Client, Retry

    found: dict[str, Any] = {"server": server, "ready": True, "reason": None, "golden": None, "queue": None}
    with Client(server, token, retry=Retry(attempts=1)) as client:
        try:
            found["golden"] = client.ready()
        except (NotReadyError, NotReproducedError) as error:
            found |= {"ready": False, "reason": str(error).replace("\n", ";")}
        try:
            found["models"] = client.models()
        except NotReadyError:
            found["models"] = None
        # It may keep no jobs.
        with suppress(NotFoundError):
            found["queue"] = client.queue().model_dump()
    emit({**found, "notice": NOTICE}, as_json, _status_text(found))
    if not found["ready"]:
        raise typer.Exit(1)


def _status_text(found: dict[str, Any]) -> str:
    golden = "" if found["golden"] in (None, "none") else f", golden cases {found['golden']}"
    lines = [f"ready{golden}" if found["ready"] else f"not ready: {found['reason']}"]
    models = found["models"] or {}
    if models.get("current"):
        lines.append(f"serves version {models['current']['version']}, digest {models['current']['digest'][:16]}")
    if models.get("loading"):
        lines.append(f"loads version {models['loading']['version']}")
    lines += [f"rejected version {each['version']}: {each['reason']}" for each in models.get("rejected", [])]
    if models.get("problem"):
        lines.append(f"follows nothing at the moment: {models['problem']}")
    if found["queue"] is not None:
        wait = found["queue"]["expected_wait_s"]
        after = f"; a new volume waits about {wait:g} s" if wait is not None else ""
        lines.append(f"jobs: {found['queue']['queued']} volumes wait, {found['queue']['running']} run{after}")
    return "\n".join([*lines, NOTICE])
