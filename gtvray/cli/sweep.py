"""`gtvray sweep`: a hyperparameter search that ends in a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

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
from gtvray.cli.recorded import tracking_found, tracking_lines


def sweep(
    space: Annotated[Path, typer.Argument(help="Search space, such as tune_configs/demo.yaml.")],
    data: Annotated[Path, typer.Option(help="Dataset with masks.")],
    address: AddressOption = None,
    workspace: WorkspaceOption = WORKSPACE,
    config: ConfigOption = None,
    override: SetOption = None,
    resume: Annotated[
        str | None, typer.Option(help="Name of an interrupted sweep to resume with the same arguments.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Search over trainings, record every trial in MLflow, and write the bundle of the best one.

    Example: gtvray sweep tune_configs/demo.yaml --data Naso_GTV

    To resume an interrupted sweep, run the same command with --resume NAME. The name is printed at the start.
    """
    from gtvray import api
    from gtvray.config import load_config, load_sweep

    spec = load_sweep(space)
    progress = Progress({"data": 10, "prepare": 20, "ray": 8, "sweep": spec.time_budget_s or 3600}, as_json)
    with progress.live():
        run = api.sweep(
            space,
            data,
            config=load_config(config, override or []),
            resume=resume,
            workspace=workspace,
            address=address,
            show=progress,
        )
    outcome, page = run.outcome, run.outcome.page
    rows = [
        {"trial": trial.trial_id, "epochs": trial.epochs, "dsc": trial.best_dsc, **trial.point}
        for trial in outcome.result.trials
    ]
    columns = {"trial": "trial", "epochs": "epochs", "dsc": "best DSC", **{key: key for key in spec.space}}
    bundle = outcome.bundle
    found: dict[str, Any] = {"bundle": str(bundle.folder), "digest": bundle.digest, "run": outcome.run_id}
    go_on = shell_command("gtvray", "promote", bundle.folder, "--data", data, "--workspace", workspace)
    again = shell_command("gtvray", "sweep", space, "--data", data, "--workspace", workspace, "--resume", run.name)
    lines = [table(rows, columns), "", f"learning curves: {page or 'none recorded'}", f"bundle: {found['bundle']}"]
    lines += [*tracking_lines(outcome.delivered, outcome.refused, again), f"promote it: {go_on}"]
    found |= {"page": str(page) if page else None, **tracking_found(outcome.delivered, outcome.refused)}
    emit({"ok": True, "trials": rows, **found}, as_json, "\n".join(lines))
