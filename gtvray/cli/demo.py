"""`gtvray demo`: run the full pipeline."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gtvray.cli.common import (
    WORKSPACE,
    AddressOption,
    ConfigOption,
    JsonOption,
    Progress,
    SetOption,
    WorkspaceOption,
    emit,
    shell_command,
    table,
)

if TYPE_CHECKING:
    from gtvray.config import SweepConfig
    from gtvray.demo import DemoResult

_COLUMNS = {
    "case": "case",
    "dsc": "DSC",
    "hd95_mm": "HD95 mm",
    "baseline_dsc": "baseline DSC",
    "baseline_hd95_mm": "baseline HD95 mm",
    "milliseconds": "HTTP ms",
}


def demo(
    data: Annotated[Path | None, typer.Option(help="A folder in StructSeg's layout; phantoms otherwise.")] = None,
    address: AddressOption = None,
    keep_serving: Annotated[bool, typer.Option("--keep-serving", help="Keep serving until Ctrl-C.")] = False,
    sweep: Annotated[Path | None, typer.Option(help="A search space; the shipped one otherwise.")] = None,
    port: Annotated[int | None, typer.Option(help="Port of the endpoint.")] = None,
    workspace: WorkspaceOption = WORKSPACE,
    config: ConfigOption = None,
    override: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Run the full pipeline, from scans to masks over HTTP.

    The stages: data, preparation, sweep, evaluation, promotion, serving, and requests for the held-out scans. KEY=VALUE
    replaces a setting in `base` of the sweep file.

    Example: gtvray demo --data Naso_GTV --json
    """
    from gtvray.config import load_config

    # Validate files and options against the schema before importing large libraries.
    base = load_config(config, [*(override or []), *([f"serving.port={port}"] if port is not None else [])])
    search = demo_sweep(sweep, data, override or [])
    from gtvray.demo import STAGES, Demo, DemoOptions
    from gtvray.errors import GateRefusedError
    from gtvray.io import Workspace

    options = DemoOptions(Workspace(workspace), search, data, address, base, _hold if keep_serving else None)
    progress = Progress(STAGES, as_json)
    run = Demo(options, progress)
    try:
        with progress.live():
            result = run.run()
    except GateRefusedError:
        if not as_json:
            typer.echo(_evidence(run.result), err=True)
        raise
    emit({"ok": True, **asdict(result)}, as_json, _text(result, workspace))


def demo_sweep(file: Path | None, data: Path | None, override: Sequence[str]) -> SweepConfig:
    """Load the sweep of a demo, without the settings of its base that `key=value` settings replace.

    Args:
        file: a sweep file; None for the shipped one.
        data: dataset of the demo; None for phantoms, which have a sweep file of their own.
        override: the `key=value` settings.
    """
    from importlib import resources

    from gtvray.config import load_sweep

    shipped = resources.files("gtvray.tune_configs") / ("demo.yaml" if data is None else "demo_data.yaml")
    return load_sweep(file or Path(str(shipped))).without_base(override)


def _hold(url: str, token: str) -> None:
    from threading import Event

    typer.echo(f"serving at {url} until Ctrl-C; bearer token: {token}", err=True)
    try:
        Event().wait()
    except KeyboardInterrupt:
        typer.echo("stopping", err=True)


def _text(result: DemoResult, workspace: Path) -> str:
    mlflow = shell_command(".venv/bin/mlflow", "ui", "--backend-store-uri", result.tracking["uri"])
    pictures = "\n".join(f"  {path}" for path in result.pictures)
    return "\n".join(
        [
            table(result.cases, _COLUMNS),
            "",
            _evidence(result),
            *([] if result.promotion["accepted"] else ["the gate refused the new model; the earlier champion stays:"]),
            *(f"- {reason}" for reason in result.promotion["reasons"]),
            f"champion: version {result.promotion['version']}; every served mask equals the offline one",
            f"pictures:\n{pictures}\n  {result.overlay}",
            "next steps:",
            f"  {shell_command('gtvray', 'serve', '--workspace', workspace)}",
            f"  {shell_command('gtvray', 'predict', 'SCAN.nii.gz', '-o', 'MASK.nii.gz', '--workspace', workspace)}",
            f"  MLFLOW_DISABLE_TELEMETRY=true {mlflow}",
            result.notice,
        ]
    )


def _evidence(result: DemoResult) -> str:
    lines = []
    for name in ("model", "baseline"):
        spread = result.summary[name]
        missed = f"{spread['missed']} of {spread['cases']} missed"
        lines.append(f"{name}: mean DSC {spread['dsc']['mean']:.3f}, HD95 {spread['hd95_mm']['mean']:.1f} mm, {missed}")
    return "\n".join(lines)
