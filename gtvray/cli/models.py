"""`gtvray promote | rollback | models`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from gtvray.cli.common import WORKSPACE, ConfigOption, JsonOption, Progress, SetOption, WorkspaceOption, emit, table


def promote(
    bundle: Annotated[Path, typer.Argument(help="Folder of the bundle, as printed by `gtvray sweep`.")],
    data: Annotated[Path, typer.Option(help="Dataset the bundle was trained on; the gate scores its held-out cases.")],
    locator: Annotated[
        Path | None, typer.Option(help="Bundle of the same data on a coarser grid, which localises the tumour.")
    ] = None,
    workspace: WorkspaceOption = WORKSPACE,
    config: ConfigOption = None,
    override: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a bundle the champion if it passes the promotion gate.

    With inference.KEY=VALUE or --locator (for inference.mode=localised) a new bundle with the same networks and these
    inference settings is scored and promoted.

    Example: gtvray promote gtvray-runs/bundles/NAME --data Naso_GTV
    """
    from gtvray import api
    from gtvray.config import flatten, load_config

    base = load_config(config, override or [])
    asked = [item.partition("=")[0] for item in override or [] if item.startswith("inference.")]
    progress = Progress({"prepare": 10, "evaluate": 30}, as_json)
    with progress.live():
        promoted = api.promote(
            bundle,
            data,
            locator=locator,
            inference={key.removeprefix("inference."): flatten(base)[key] for key in asked},
            workspace=workspace,
            config=base,
            show=progress,
        )
    version, judgement = promoted.version, promoted.judgement
    found = {"version": version.version, "digest": promoted.digest, **asdict(judgement)}
    gain = judgement.difference
    over = f", DSC {gain.mean:+.3f} over the baseline (from {gain.low:+.3f})" if gain else ""
    emit(found, as_json, f"version {version.version} is champion{over}")


def rollback(
    restore: Annotated[
        bool,
        typer.Option("--restore", help="Restore the last decided champion after a change made in MLflow."),
    ] = False,
    workspace: WorkspaceOption = WORKSPACE,
    config: ConfigOption = None,
    override: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make the previous champion the champion again.

    With --restore the champion of the last decision is restored instead: the alias is set to it, and if its version was
    deleted in MLflow, the bundle is registered again.

    Example: gtvray rollback
    """
    from gtvray import api
    from gtvray.config import load_config

    version = api.rollback(restore=restore, workspace=workspace, config=load_config(config, override or []))
    emit(asdict(version), as_json, f"version {version.version} is champion again")


def models(
    workspace: WorkspaceOption = WORKSPACE,
    config: ConfigOption = None,
    override: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the registered versions.

    Example: gtvray models
    """
    from gtvray.api import open_registry
    from gtvray.config import load_config
    from gtvray.io import Workspace

    versions = open_registry(Workspace(workspace), load_config(config, override or []), writing=False).versions()
    rows = [{**asdict(version), "aliases": ", ".join(version.aliases)} for version in versions]
    columns = {"version": "version", "aliases": "aliases", "digest": "digest", "run_id": "MLflow run"}
    text = table(rows, columns) if rows else "no model is registered"
    emit([asdict(version) for version in versions], as_json, text)
