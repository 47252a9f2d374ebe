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
    from gtvray.api import find_golden, load_bundle, open_registry
    from gtvray.config import load_config
    from gtvray.errors import NotFoundError
    from gtvray.io import Workspace
    from gtvray.runtime import connect, require_port
    from gtvray.serving import start_server
    from gtvray.serving.arguments import read_token

    base = load_config(config, [*(override or []), *([f"serving.port={port}"] if port is not None else [])])
    require_port(base.serving.host, base.serving.port, "--port")
    folders = Workspace(workspace)
    bundle = load_bundle(model, folders, base)
    versions = {known.digest: known.version for known in open_registry(folders, base, writing=False).versions()}
    golden = None
    try:
        golden = find_golden(bundle, folders, base)
    except NotFoundError:
        # A registered model must reproduce its golden cases here; a bundle that was never promoted has none.
        if bundle.digest in versions:
            raise
    given = read_token(token_file) if token_file else os.environ.get("GTVRAY_TOKEN")
    token = given or secrets.token_urlsafe(24)
    progress = Progress({"ray": 8, "serve": 15}, quiet=False)
    with progress.live():
        progress.begin("ray", "connecting to Ray")
        with connect(address):
            progress.begin("serve", "starting the endpoint")
            version = versions.get(bundle.digest, "unregistered")
            server = start_server(
                bundle.folder.resolve(),
                base.serving,
                token,
                version=version,
                digest=bundle.digest,
                golden=golden,
                token_file=token_file and token_file.resolve(),
            )
            try:
                server.wait_ready()
                unchecked = "" if golden else "; masks not checked, as the bundle has no golden cases"
                generated = "" if given else f"; bearer token: {token}"
                typer.echo(f"serving version {version} at {server.url} until Ctrl-C{unchecked}{generated}", err=True)
                Event().wait()
            except KeyboardInterrupt:
                typer.echo("stopping", err=True)
            finally:
                server.stop()
