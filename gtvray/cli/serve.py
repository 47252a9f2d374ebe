"""`gtvray serve`: the champion behind an HTTP endpoint, until Ctrl-C."""

from __future__ import annotations

import os
import secrets
from threading import Event
from typing import Annotated

import typer

from gtvray.cli.common import WORKSPACE, AddressOption, ConfigOption, ModelOption, Progress, SetOption, WorkspaceOption


def serve(
    model: ModelOption = "champion",
    address: AddressOption = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on.")] = None,
    workspace: WorkspaceOption = WORKSPACE,
    config: ConfigOption = None,
    override: SetOption = None,
) -> None:
    """Serve a model; the bearer token is GTVRAY_TOKEN, or one that is made and printed.

    Example: GTVRAY_TOKEN=secret gtvray serve --port 8080
    """
    from gtvray.api import find_golden, load_bundle, open_registry
    from gtvray.config import load_config
    from gtvray.errors import NotFoundError
    from gtvray.io import Workspace
    from gtvray.runtime import PROXY_CALLBACK, connect, require_port
    from gtvray.serving import start_server

    base = load_config(config, [*(override or []), *([f"serving.port={port}"] if port is not None else [])])
    require_port(base.serving.host, base.serving.port, "--port")
    place = Workspace(workspace)
    bundle = load_bundle(model, place, base)
    versions = {known.digest: known.version for known in open_registry(place, base, writing=False).versions()}
    golden = None
    try:
        golden = find_golden(bundle, place, base)
    except NotFoundError:
        # A promoted model was proved somewhere, and is to be proved here; a bundle that never was may be tried.
        if bundle.digest in versions:
            raise
    token = os.environ.get("GTVRAY_TOKEN") or secrets.token_urlsafe(24)
    progress = Progress({"ray": 8, "serve": 15}, quiet=False)
    with progress.live():
        progress.begin("ray", "connecting to Ray")
        with connect(address, worker_env=dict([PROXY_CALLBACK])):
            progress.begin("serve", "starting the endpoint")
            version = versions.get(bundle.digest, "unregistered")
            server = start_server(
                bundle.folder, base.serving, token, version=version, digest=bundle.digest, golden=golden
            )
            try:
                server.wait_ready()
                made = "" if os.environ.get("GTVRAY_TOKEN") else f"; bearer token: {token}"
                unproved = "" if golden else "; no golden cases came with it"
                typer.echo(f"serving version {version} at {server.url} until Ctrl-C{unproved}{made}", err=True)
                Event().wait()
            except KeyboardInterrupt:
                typer.echo("stopping", err=True)
            finally:
                server.stop()
