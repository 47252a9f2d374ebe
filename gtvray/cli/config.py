"""`gtvray config show|schema|diff|plan`: show, compare and plan settings."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gtvray.cli.common import (
    WORKSPACE,
    ConfigOption,
    JsonOption,
    OverwriteOption,
    Progress,
    SetOption,
    WorkspaceOption,
    emit,
    table,
)
from gtvray.cli.settings import SettingsCommand

if TYPE_CHECKING:
    from gtvray.config import Config

app = typer.Typer(help="Show, compare or plan settings.", no_args_is_help=True)


@app.command(cls=SettingsCommand)
def show(config: ConfigOption = None, override: SetOption = None, as_json: JsonOption = False) -> None:
    """Show every key with its value.

    Example: gtvray config show optimizer.lr=3e-4
    """
    from gtvray.config import flatten, load_config

    values = flatten(load_config(config, override or []))
    emit(values, as_json, "\n".join(f"{key}={value}" for key, value in values.items()))


@app.command(cls=SettingsCommand)
def schema(as_json: JsonOption = False) -> None:
    """Show every key with its default and its meaning.

    Example: gtvray config schema --json
    """
    from gtvray.config import Config, describe_keys

    rows = describe_keys(Config)
    emit(Config.model_json_schema(), as_json, table(rows, {"key": "key", "default": "default", "about": "about"}))


@app.command(cls=SettingsCommand)
def diff(
    config: Annotated[Path, typer.Argument(help="A YAML file of settings.")],
    other: Annotated[Path | None, typer.Argument(help="Another one; the defaults otherwise.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Show the keys whose values differ.

    Example: gtvray config diff my.yaml
    """
    from gtvray.config import flatten, load_config

    here, there = flatten(load_config(config)), flatten(load_config(other))
    changed = {key: {"value": here[key], "other": there[key]} for key in here if here[key] != there[key]}
    text = "\n".join(f"{key}: {pair['other']} -> {pair['value']}" for key, pair in changed.items())
    emit(changed, as_json, text or "no difference")


@app.command(cls=SettingsCommand)
def plan(
    data: Annotated[Path, typer.Argument(help="A dataset of any layout.")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="A YAML file to write the settings to.")] = None,
    overwrite: OverwriteOption = False,
    workspace: WorkspaceOption = WORKSPACE,
    config: ConfigOption = None,
    override: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Derive settings from the training cases and a worker's memory.

    These are spacing, patch, batch and network, each with its reason. Values set in the file or as key=value are kept.
    A training that does not fit into memory is rejected. With training.use_gpu=true the memory is read on a Ray worker
    with a GPU, on the cluster that RAY_ADDRESS names or on this machine.

    Example: gtvray config plan Naso_GTV --out naso_gtv.yaml
    """
    from gtvray.config import load_config
    from gtvray.data import open_project
    from gtvray.datasets import index_dataset
    from gtvray.io import Workspace, check_outputs
    from gtvray.training import describe_plan, plan_training

    folders, settings = Workspace(workspace), load_config(config, override or [])
    if out is not None:
        check_outputs([out], inputs=[config] if config is not None else [], overwrite=overwrite)
    dataset = index_dataset(data)
    progress = Progress({"prepare": len(dataset.cases) * 0.5}, as_json)
    with progress.live(), folders.lock():
        progress.begin("prepare", dataset.title)
        project = open_project(dataset, settings, cache=folders.cache, splits=folders.splits, report=progress.advance)
        planned = plan_training(project.fingerprint, _worker_memory_bytes(settings), settings)
    text = describe_plan(planned)
    if out is not None:
        _write(out, planned.given(), overwrite)
        text += f"\nsettings: {out}"
    emit({**planned.as_dict(), "file": str(out) if out else None}, as_json, text)


def _worker_memory_bytes(config: Config) -> int:
    """Return the memory of the device that a worker of this training uses, in bytes."""
    from gtvray.training import device_bytes

    if not config.training.use_gpu:
        return device_bytes(config)
    from gtvray.runtime import connect

    with connect() as cluster:
        from gtvray.experiments.tasks import worker_memory_bytes

        return worker_memory_bytes(config, cluster)


def _write(path: Path, values: dict[str, Any], overwrite: bool) -> None:
    import yaml

    from gtvray.io import write_output_text

    write_output_text(path, yaml.safe_dump(values, sort_keys=False), overwrite=overwrite)
