"""`gtvray doctor`: what this machine has, and whether the main job can run on it."""

from __future__ import annotations

import platform
import shutil
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import typer

from gtvray.cli.common import WORKSPACE, AddressOption, JsonOption, WorkspaceOption, emit, table

_PACKAGES = ("gtvray", "ray", "torch", "monai", "mlflow", "optuna", "numpy", "nibabel", "pydantic")
_NEED_GB = 2.0


def doctor(
    workspace: WorkspaceOption = WORKSPACE,
    address: AddressOption = None,
    tracking: Annotated[str | None, typer.Option(help="An MLflow tracking URI to try.")] = None,
    port: Annotated[int, typer.Option(help="The endpoint's port.")] = 8000,
    as_json: JsonOption = False,
) -> None:
    """Versions, devices, disk, ports, Ray and MLflow; exit code 1 if something is missing.

    Example: gtvray doctor --json
    """
    checks = [_versions(), _devices(), _memory(), _disk(workspace), _port(port), *_proxies()]
    checks += [_ray(address), _mlflow(tracking)]
    columns = {"check": "check", "state": "state", "found": "found"}
    emit({"ok": all(row["ok"] for row in checks), "checks": checks}, as_json, table(checks, columns))
    if not all(row["ok"] for row in checks):
        raise typer.Exit(1)


def _row(check: str, ok: bool, found: str, **details: Any) -> dict[str, Any]:
    return {"check": check, "ok": ok, "state": "good" if ok else "BAD", "found": found, **details}


def _versions() -> dict[str, Any]:
    versions: dict[str, str] = {"python": platform.python_version()}
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


def _memory() -> dict[str, Any]:
    lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    free_gb = int(lines["MemAvailable"].split()[0]) / 1e6
    return _row("memory", free_gb >= 4, f"{free_gb:.1f} GB free", free_gb=free_gb)


def _disk(workspace: Path) -> dict[str, Any]:
    home = next(folder for folder in (workspace.resolve(), *workspace.resolve().parents) if folder.exists())
    free_gb = shutil.disk_usage(home).free / 1e9
    return _row("disk", free_gb >= _NEED_GB, f"{free_gb:.1f} GB free at {home}", free_gb=free_gb)


def _port(port: int) -> dict[str, Any]:
    from gtvray.runtime import port_is_free

    free = port_is_free("127.0.0.1", port)
    return _row("port", free, f"{port} is {'free' if free else 'in use: choose another with --port'}")


def _proxies() -> list[dict[str, Any]]:
    """A row where the environment names proxies; none where it does not."""
    from gtvray.runtime import proxy_settings

    settings = proxy_settings()
    if not any(name.lower() != "no_proxy" for name in settings):
        return []
    found = ", ".join(f"{name}={value}" for name, value in settings.items())
    return [_row("proxies", True, f"{found}; not used for this machine", proxies=settings)]


def _ray(address: str | None) -> dict[str, Any]:
    from gtvray.errors import GtvrayError
    from gtvray.runtime import connect

    try:
        with connect(address) as cluster:
            kind = "started here and ended" if cluster.is_local else cluster.address
            return _row("ray", True, f"{cluster.cpus:g} CPUs, {cluster.gpus:g} GPUs; {kind}")
    except GtvrayError as error:
        return _row("ray", False, str(error).replace("\n", ";"))


def _mlflow(uri: str | None) -> dict[str, Any]:
    import tempfile

    from gtvray.errors import GtvrayError
    from gtvray.io import sqlite_uri
    from gtvray.tracking import connect_mlflow

    with tempfile.TemporaryDirectory() as scratch:
        try:
            connect_mlflow(uri or sqlite_uri(Path(scratch) / "mlflow.db"), Path(scratch))
        except GtvrayError as error:
            return _row("mlflow", False, str(error).replace("\n", ";"))
    return _row("mlflow", True, uri or "SQLite")
