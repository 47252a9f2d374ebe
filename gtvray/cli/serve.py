"""`gtvray serve`: serve a registered model or a bundle over HTTP, until Ctrl-C or in the background."""

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
    CaFileOption,
    ConfigOption,
    JsonOption,
    ModelOption,
    Progress,
    SetOption,
    WorkspaceOption,
    emit,
    shell_command,
)
from gtvray.cli.settings import RunGroup, SettingsCommand

app = typer.Typer(cls=RunGroup, help="Serve a model over HTTP.")
_UNCHECKED = "masks not checked, as the bundle has no golden cases"
_PortOption = Annotated[int | None, typer.Option("--port", help="Port to listen on.")]
_WhichOption = Annotated[int | None, typer.Option("--port", help="Port of the endpoint, if there are several.")]
_TokenFileOption = Annotated[
    Path | None, typer.Option("--token-file", help="File with the bearer token, readable on every node of the cluster.")
]


@app.command(RunGroup.default, cls=SettingsCommand)
def serve(
    model: ModelOption = "champion",
    address: AddressOption = None,
    port: _PortOption = None,
    token_file: _TokenFileOption = None,
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

    base = load_config(config, _settings(port, override))
    require_port(base.serving.host, base.serving.port, "--port")
    endpoint = Endpoint(model, workspace=workspace, config=base)
    token, generated = _token(token_file)
    progress = Progress({"ray": 8, "serve": 15}, quiet=False)
    with progress.live():
        progress.begin("ray", "connecting to Ray")
        with connect(address):
            progress.begin("serve", "starting the endpoint")
            server = endpoint.start(token, token_file)
            try:
                server.wait_ready()
                unchecked = "" if endpoint.golden else f"; {_UNCHECKED}"
                shown = f"; bearer token: {token}" if generated else ""
                versions = server.versions()
                version = versions.current.version if versions.current is not None else endpoint.version
                serving = _serving_text(version, endpoint.follows, server.url)
                if server.without_jobs is not None:
                    typer.echo(f"no jobs are accepted: {server.without_jobs}", err=True)
                for each in versions.rejected:
                    typer.echo(f"version {each.version} is rejected: {each.reason}", err=True)
                if endpoint.away:
                    typer.echo(_away_text(version, endpoint.away), err=True)
                typer.echo(f"{serving} until Ctrl-C{unchecked}{shown}", err=True)
                Event().wait()
            except KeyboardInterrupt:
                typer.echo("stopping", err=True)
            finally:
                server.stop()


@app.command("start", cls=SettingsCommand)
def start(
    model: ModelOption = "champion",
    address: AddressOption = None,
    port: _PortOption = None,
    token_file: _TokenFileOption = None,
    workspace: WorkspaceOption = WORKSPACE,
    config: ConfigOption = None,
    override: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Serve a model over HTTP in the background.

    The command returns when the endpoint is ready, or with the reason why it is not. Options and token are those of
    `gtvray serve`. The endpoint runs until `gtvray serve stop`, also after logging out.

    Example: gtvray serve start --port 8080
    """
    from gtvray.api import Endpoint, require_no_background, start_background
    from gtvray.api.registry import is_folder
    from gtvray.config import load_config
    from gtvray.runtime import require_port

    progress = Progress({"check": 5, "serve": 30}, as_json)
    with progress.live():
        progress.begin("check", "checking settings and model")
        base = load_config(config, _settings(port, override))
        folder = workspace.resolve()
        require_no_background(folder, base.serving.port)
        require_port(base.serving.host, base.serving.port, "--port")
        endpoint = Endpoint(model, workspace=folder, config=base)
        token, generated = _token(token_file)
        words: list[object] = ["--model", Path(model).resolve() if is_folder(model) else model]
        words += ["--workspace", folder, "--port", base.serving.port]
        words += ["--address", address] if address is not None else []
        words += ["--token-file", token_file.resolve()] if token_file is not None else []
        words += ["--config", config.resolve()] if config is not None else []
        words += [word for setting in override or [] for word in ("--set", setting)]
        started = start_background([str(word) for word in words], token, base.serving, workspace=folder, show=progress)
    # If the champion is rejected, the version that was served last is served.
    served = endpoint.served()
    found = {
        **started.as_dict(),
        "version": served.current.version if served.current is not None else endpoint.version,
        "golden": endpoint.golden is not None,
        "rejected": [{"version": each.version, "reason": each.reason} for each in served.rejected],
        "away": endpoint.away,
        # The token is shown here only.
        "token": token if generated else None,
        "stop": shell_command("gtvray", "serve", "stop", "--workspace", folder, "--port", started.port),
    }
    emit(found, as_json, _start_text(found, endpoint.follows))


@app.command("stop")
def stop(port: _WhichOption = None, workspace: WorkspaceOption = WORKSPACE, as_json: JsonOption = False) -> None:
    """Stop an endpoint that `start` has started.

    Requests in progress are completed first. Nothing else is stopped.

    Example: gtvray serve stop
    """
    from gtvray.api import find_background

    endpoint = find_background(workspace, port)
    was_running = endpoint.is_running
    progress = Progress({"stop": 10}, as_json)
    with progress.live():
        progress.begin("stop", f"requests in progress at {endpoint.url} are completed")
        killed = endpoint.stop()
    ended = "stopped" if was_running else "had already ended"
    ended += f"; {killed} of its processes had to be killed" if killed else ""
    found = {**endpoint.as_dict(), "was_running": was_running, "killed": killed}
    emit(found, as_json, f"the endpoint at {endpoint.url} {ended}; its log is {endpoint.log}")


@app.command("logs")
def logs(
    port: _WhichOption = None,
    workspace: WorkspaceOption = WORKSPACE,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Print new lines until it ends, or Ctrl-C.")] = False,
) -> None:
    """Print the output of an endpoint that `start` has started.

    Example: gtvray serve logs -f
    """
    from gtvray.api import find_background

    with suppress(KeyboardInterrupt):
        for piece in find_background(workspace, port).lines(follow):
            typer.echo(piece, nl=False)


@app.command("status")
def status(
    server: Annotated[
        str | None, typer.Option(help="Address of the endpoint; by default that in the background, or port 8000 here.")
    ] = None,
    token: Annotated[str, typer.Option(envvar="GTVRAY_TOKEN", help="Its bearer token.")] = "",
    ca_file: CaFileOption = None,
    port: _WhichOption = None,
    workspace: WorkspaceOption = WORKSPACE,
    as_json: JsonOption = False,
) -> None:
    """Show the state of a running endpoint.

    It prints whether the endpoint is ready, which version it serves, and how many jobs are queued. The exit code is 0
    if it is ready.

    Example: gtvray serve status --server http://127.0.0.1:8000
    """
    from gtvray.api import background_endpoints, find_background
    from gtvray.errors import NotReadyError, NotReproducedError
    from gtvray.serving import Client, Retry

    background = None
    if server is None and (port is not None or background_endpoints(workspace)):
        background = find_background(workspace, port)
    url = server or (background.url if background is not None else "http://127.0.0.1:8000")
    found: dict[str, Any] = {"server": url, "ready": True, "reason": None, "golden": None, "queue": None}
    found["background"] = background.as_dict() if background is not None else None
    if background is not None and not background.is_running:
        found |= {"ready": False, "reason": f"it has ended: {background.last_words}", "models": None}
        emit({**found, "notice": NOTICE}, as_json, _status_text(found))
        raise typer.Exit(1)
    with Client(url, token, retry=Retry(attempts=1), ca_file=ca_file) as client:
        try:
            found["golden"] = client.ready()
        except (NotReadyError, NotReproducedError) as error:
            found |= {"ready": False, "reason": str(error).replace("\n", ";")}
        try:
            found["models"] = client.models()
        except NotReadyError:
            found["models"] = None
        found["queue"] = client.queue().model_dump()
    emit({**found, "notice": NOTICE}, as_json, _status_text(found))
    if not found["ready"]:
        raise typer.Exit(1)


def _settings(port: int | None, override: list[str] | None) -> list[str]:
    return [*(override or []), *([f"serving.port={port}"] if port is not None else [])]


def _token(token_file: Path | None) -> tuple[str, bool]:
    """Return the bearer token, and whether it was generated."""
    from gtvray.serving.arguments import read_token

    given = read_token(token_file) if token_file else os.environ.get("GTVRAY_TOKEN")
    return given or secrets.token_urlsafe(24), not given


def _serving_text(version: str, follows: bool, url: str) -> str:
    return f"serving version {version}{' and every later champion' if follows else ''} at {url}"


def _away_text(version: str, away: str) -> str:
    return f"{away}: version {version}, which was served last, is served until it responds"


def _start_text(found: dict[str, Any], follows: bool) -> str:
    lines = [
        _serving_text(found["version"], follows, found["url"]),
        f"process {found['pid']}, log {found['log']}",
    ]
    lines += [f"version {each['version']} is rejected: {each['reason']}" for each in found["rejected"]]
    if found["away"]:
        lines.append(_away_text(found["version"], found["away"]))
    if not found["golden"]:
        lines.append(_UNCHECKED)
    if found["token"]:
        lines.append(f"bearer token: {found['token']}")
    return "\n".join([*lines, f"stop it: {found['stop']}", NOTICE])


def _status_text(found: dict[str, Any]) -> str:
    golden = "" if found["golden"] in (None, "none") else f", golden cases {found['golden']}"
    lines = [f"ready{golden}" if found["ready"] else f"not ready: {found['reason']}"]
    if found["background"] is not None:
        lines.append(f"in the background: process {found['background']['pid']}, log {found['background']['log']}")
    models = found["models"] or {}
    if models.get("current"):
        lines.append(f"serves version {models['current']['version']}, digest {models['current']['digest'][:16]}")
    if models.get("loading"):
        lines.append(f"loads version {models['loading']['version']}")
    for each in models.get("models", [])[1:]:
        version = f"version {each['current']['version']}" if each["current"] else "no version yet"
        lines.append(f"serves {version} of {each['name']}")
    lines += [f"rejected version {each['version']}: {each['reason']}" for each in models.get("rejected", [])]
    if models.get("problem"):
        lines.append(f"cannot follow the champion at the moment: {models['problem']}")
    if found["queue"] is not None:
        wait = found["queue"]["expected_wait_s"]
        after = f"; a new volume waits about {wait:g} s" if wait is not None else ""
        lines.append(f"jobs: {found['queue']['queued']} volumes wait, {found['queue']['running']} run{after}")
        for each in found["queue"]["replicas"]:
            starting = f", {each['starting']} start" if each["starting"] else ""
            lines.append(f"replicas of {each['model']}: {each['running']} run{starting}, at most {each['largest']}")
    return "\n".join([*lines, NOTICE])
