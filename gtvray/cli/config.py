"""`gtvray config show|schema|diff`: the one schema, as it is and as it would be."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gtvray.cli.common import ConfigOption, JsonOption, SetOption, emit, table

app = typer.Typer(help="Show settings, their schema, or what differs from the defaults.", no_args_is_help=True)


@app.command()
def show(config: ConfigOption = None, override: SetOption = None, as_json: JsonOption = False) -> None:
    """Every key with its value.

    Example: gtvray config show -s optimizer.lr=3e-4
    """
    from gtvray.config import flatten, load_config

    values = flatten(load_config(config, override or []))
    emit(values, as_json, "\n".join(f"{key}={value}" for key, value in values.items()))


@app.command()
def schema(as_json: JsonOption = False) -> None:
    """Every key with its default and what it means.

    Example: gtvray config schema --json
    """
    from gtvray.config import Config, describe_keys

    rows = describe_keys()
    emit(Config.model_json_schema(), as_json, table(rows, {"key": "key", "default": "default", "about": "about"}))


@app.command()
def diff(
    config: Annotated[Path, typer.Argument(help="A YAML file of settings.")],
    other: Annotated[Path | None, typer.Argument(help="Another one; the defaults otherwise.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Keys whose values differ.

    Example: gtvray config diff my.yaml
    """
    from gtvray.config import flatten, load_config

    here, there = flatten(load_config(config)), flatten(load_config(other))
    changed = {key: {"value": here[key], "other": there[key]} for key in here if here[key] != there[key]}
    text = "\n".join(f"{key}: {pair['other']} -> {pair['value']}" for key, pair in changed.items())
    emit(changed, as_json, text or "no difference")
