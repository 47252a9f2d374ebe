"""`gtvray serve`: serve a registered model or a bundle over HTTP until Ctrl-C."""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from threading import Event
from typing import Annotated

import typer

from gtvray.cli.common import WORKSPACE, AddressOption, ConfigOption, ModelOption, Progress, SetOption, WorkspaceOption


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
    """Serve a model over HTTP; clients need the bearer token in GTVRAY_TOKEN, or the generated one that is printed.

    On a cluster of several nodes each node needs the token: in --token-file, or in GTVRAY_TOKEN before `ray start`.

    Example: GTVRAY_TOKEN=secret gtvray serve --port 8080
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
