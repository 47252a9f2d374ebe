"""`gtvray doctor`: check that this machine can run gtvray."""

from __future__ import annotations

import platform
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gtvray import __version__
from gtvray.cli.common import WORKSPACE, AddressOption, JsonOption, WorkspaceOption, emit, table
from gtvray.errors import GtvrayError

if TYPE_CHECKING:
    from gtvray.runtime import Finding

_PACKAGES = ("ray", "torch", "monai", "mlflow", "optuna", "numpy", "nibabel", "pydantic")


def doctor(
    workspace: WorkspaceOption = WORKSPACE,
    address: AddressOption = None,
    tracking: Annotated[str | None, typer.Option(help="An MLflow tracking URI to check.")] = None,
    port: Annotated[int, typer.Option(help="The port of the endpoint.")] = 8000,
    cluster: Annotated[bool, typer.Option("--cluster", help="Check every node of the cluster.")] = False,
    data: Annotated[Path | None, typer.Option(help="With --cluster: a dataset that all nodes must have.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Check this machine, Ray and MLflow.

    Versions, devices, user, folders, limits and ports are checked too. The exit code is 1 if a check fails.

    A check marked "note" passed, and its advice is optional.

    With --cluster, the nodes of the cluster at --address, or of RAY_ADDRESS, are checked instead of this machine:
    versions, workspace, --data and --tracking.

    Example: gtvray doctor --json
    """
    from gtvray.runtime import examine_host

    if cluster:
        _report(_nodes(address, workspace, data, tracking), as_json)
        return
    host = [_host_row(found) for found in examine_host(workspace)]
    checks = [_versions(), _devices(), *host, _port(port), *_proxies(), _ray(address), _mlflow(tracking)]
    _report(checks, as_json)


def _report(checks: list[dict[str, Any]], as_json: bool) -> None:
    columns = {"check": "check", "state": "state", "found": "found"}
    advice = [f"{row['check']}: {row['do']}" for row in checks if row["do"]]
    text = "\n".join([table(checks, columns), *([""] if advice else []), *advice])
    emit({"ok": all(row["ok"] for row in checks), "checks": checks}, as_json, text)
    if not all(row["ok"] for row in checks):
        raise typer.Exit(1)


def _row(check: str, ok: bool, found: str, do: str | None = None, **details: Any) -> dict[str, Any]:
    state = "BAD" if not ok else "note" if do else "good"
    return {"check": check, "ok": ok, "state": state, "found": found, "do": do, **details}


def _host_row(found: Finding) -> dict[str, Any]:
    details = {} if found.free_gb is None else {"free_gb": found.free_gb}
    return _row(found.check, found.ok, found.found, found.do, **details)


def _failed(check: str, error: GtvrayError) -> dict[str, Any]:
    """The row of a failed service check; advice to run `gtvray doctor` is replaced."""
    found = "; ".join(
        [error.what, *(f"{name} {error.fields[name]}" for name in ("where", "found") if name in error.fields)]
    )
    do = error.fields.get("do", "")
    return _row(check, False, found, "correct the rows above first" if "gtvray doctor" in do else do)


def _versions() -> dict[str, Any]:
    versions: dict[str, str] = {"python": platform.python_version(), "gtvray": __version__}
    missing = []
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            missing.append(name)
    found = ", ".join(f"{name} {version}" for name, version in versions.items())
    return _row("versions", not missing, found + "".join(f", {name} MISSING" for name in missing), versions=versions)


def _devices() -> dict[str, Any]:
    import torch

    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    bf16 = torch.cpu.get_capabilities().get("avx512_bf16", False)
    found = f"{torch.get_num_threads()} CPU threads{', bf16' if bf16 else ''}; {', '.join(gpus) or 'no GPU'}"
    return _row("devices", True, found, gpus=gpus)


def _port(port: int) -> dict[str, Any]:
    from gtvray.runtime import port_is_free

    free = port_is_free("127.0.0.1", port)
    return _row(
        "port", free, f"{port} is {'free' if free else 'in use'}", None if free else "choose another with --port"
    )


def _proxies() -> list[dict[str, Any]]:
    """One row if the environment configures a proxy, otherwise none."""
    from gtvray.runtime import proxy_settings

    settings = proxy_settings()
    if not any(name.lower() != "no_proxy" for name in settings):
        return []
    found = ", ".join(f"{name}={value}" for name, value in settings.items())
    return [_row("proxies", True, f"{found}; not used for this machine", proxies=settings)]


def _ray(address: str | None) -> dict[str, Any]:
    from gtvray.runtime import connect

    try:
        with connect(address) as cluster:
            kind = "a local cluster, started and stopped" if cluster.is_local else cluster.address
            return _row("ray", True, f"{cluster.cpus:g} CPUs, {cluster.gpus:g} GPUs; {kind}")
    except GtvrayError as error:
        return _failed("ray", error)


def _nodes(address: str | None, workspace: Path, data: Path | None, tracking: str | None) -> list[dict[str, Any]]:
    """A row for each node."""
    from gtvray.runtime import connect

    with connect(address) as cluster:
        from gtvray.experiments import examine_nodes

        reports = examine_nodes(workspace, [data] if data else [], tracking)
        advice = "mount the storage at the same path, or correct the versions, on this node"
        return [
            _row(
                report.node,
                not report.problems,
                "; ".join(report.problems)
                or ", ".join(f"{name} {version}" for name, version in report.versions.items()),
                advice if report.problems and not cluster.is_local else None,
                versions=report.versions,
            )
            for report in reports
        ]


def _mlflow(uri: str | None) -> dict[str, Any]:
    import tempfile

    from gtvray.io import sqlite_uri
    from gtvray.tracking import connect_mlflow

    try:
        with tempfile.TemporaryDirectory() as scratch:
            connect_mlflow(uri or sqlite_uri(Path(scratch) / "mlflow.db"), Path(scratch))
    except GtvrayError as error:
        return _failed("mlflow", error)
    except OSError as error:
        return _row("mlflow", False, f"temporary files are not writable: {error}", "correct the rows above first")
    return _row("mlflow", True, uri or "SQLite")
