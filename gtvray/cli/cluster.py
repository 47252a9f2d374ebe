"""`gtvray cluster`: a Ray head, an MLflow server and the endpoint on this machine, started and stopped together."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gtvray.cli.common import WORKSPACE, JsonOption, ModelOption, Progress, WorkspaceOption, emit, shell_command, table
from gtvray.cli.settings import SettingsCommand

if TYPE_CHECKING:
    from gtvray.api import LocalCluster, ServiceHealth

app = typer.Typer(help="Run Ray, MLflow and the endpoint on this machine.", no_args_is_help=True)
_FolderOption = Annotated[
    Path | None,
    typer.Option(
        "--folder",
        envvar="GTVRAY_CLUSTER",
        help="Folder for tokens, process ids and logs; by default ~/.local/state/gtvray-cluster.",
    ),
]


@app.command("up", cls=SettingsCommand)
def up(
    folder: _FolderOption = None,
    workspace: WorkspaceOption = WORKSPACE,
    model: ModelOption = "champion",
    cpus: Annotated[int | None, typer.Option(min=1, help="CPUs of the Ray head; by default all.")] = None,
    database: Annotated[
        str | None,
        typer.Option(
            envvar="GTVRAY_DATABASE",
            help="PostgreSQL of MLflow, postgresql://...; by default SQLite in the workspace.",
        ),
    ] = None,
    mlflow: Annotated[bool, typer.Option(help="Start the MLflow server.")] = True,
    endpoint: Annotated[bool, typer.Option(help="Start the endpoint, once a model has been promoted.")] = True,
    ray_port: Annotated[int, typer.Option(help="Port of Ray's control store.")] = 6379,
    dashboard_port: Annotated[int, typer.Option(help="Port of Ray's dashboard, where jobs are submitted.")] = 8265,
    mlflow_port: Annotated[int, typer.Option(help="Port of the MLflow server.")] = 5000,
    port: Annotated[int, typer.Option(help="Port of the endpoint.")] = 8000,
    as_json: JsonOption = False,
) -> None:
    """Start the services that do not run yet.

    The command waits until they are healthy. Dashboard, MLflow and endpoint listen on localhost; MLflow has no
    authentication. Ray's own ports listen on every address of the machine and require a token; close them with a
    firewall as well.

    Example: gtvray cluster up --workspace gtvray-runs
    """
    from gtvray.api import LocalCluster, LocalPorts
    from gtvray.io import Workspace

    progress = Progress({"ray": 10, "mlflow": 10, "endpoint": 30}, as_json)
    ports = LocalPorts(ray_port, dashboard_port, mlflow_port, port)
    cluster = LocalCluster(_folder(folder), Workspace(workspace), ports, model, cpus, database, progress)
    with progress.live():
        found = cluster.up(mlflow=mlflow, endpoint=endpoint)
    emit(_as_json(cluster, found), as_json, f"{_text(found)}\n\n{_how_to_use(cluster)}")


@app.command("status", cls=SettingsCommand)
def status(folder: _FolderOption = None, as_json: JsonOption = False) -> None:
    """Print the health of each service.

    The exit code is 1 if one that was started is not healthy.

    Example: gtvray cluster status
    """
    cluster = _known(folder)
    found = cluster.status()
    emit(_as_json(cluster, found), as_json, _text(found))
    if any(each.state in ("unhealthy", "ended") for each in found):
        raise typer.Exit(1)


@app.command("down", cls=SettingsCommand)
def down(folder: _FolderOption = None, as_json: JsonOption = False) -> None:
    """Stop every service that `up` has started.

    All of their processes are ended. Other Ray clusters and MLflow servers are not affected.

    Example: gtvray cluster down
    """
    progress = Progress({"endpoint": 10, "mlflow": 3, "ray": 10}, as_json)
    cluster = _known(folder, progress)
    started = [each.service for each in cluster.status() if each.pid is not None]
    with progress.live():
        killed = cluster.down()
    found = {"stopped": started, "killed": killed, "logs": str(cluster.folder / "logs")}
    emit(found, as_json, f"stopped {', '.join(started)}; logs in {found['logs']}" if started else "nothing was running")


def _folder(folder: Path | None) -> Path:
    from gtvray.api import default_cluster_folder

    return folder if folder is not None else default_cluster_folder()


def _known(folder: Path | None, progress: Progress | None = None) -> LocalCluster:
    from gtvray.api import LocalCluster
    from gtvray.io import Workspace
    from gtvray.runtime import SILENT

    # Neither needs the workspace.
    return LocalCluster(_folder(folder), Workspace(WORKSPACE), show=progress or SILENT)


def _as_json(cluster: LocalCluster, found: list[ServiceHealth]) -> dict[str, Any]:
    return {
        "services": [asdict(each) for each in found],
        "ports": asdict(cluster.ports),
        "ray_token": str(cluster.ray_token),
        "endpoint_token": str(cluster.endpoint_token),
        "tracking_uri": cluster.tracking_uri,
    }


def _text(found: list[ServiceHealth]) -> str:
    return table(
        [asdict(each) for each in found],
        {"service": "service", "state": "state", "address": "address", "pid": "process", "detail": "detail"},
    )


def _how_to_use(cluster: LocalCluster) -> str:
    address = f"127.0.0.1:{cluster.ports.ray}"
    where = ("--workspace", cluster.workspace.root, f"tracking.uri={cluster.tracking_uri}")
    return "\n".join(
        [
            f"export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH={shell_command(cluster.ray_token)}",
            shell_command("gtvray", "sweep", "SPACE.yaml", "--data", "DATA", "--address", address, *where),
            shell_command(
                "gtvray", "submit", "--address", f"http://127.0.0.1:{cluster.ports.dashboard}", "--", "doctor"
            ),
            "gtvray cluster down",
        ]
    )
