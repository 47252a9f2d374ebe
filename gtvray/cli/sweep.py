"""`gtvray sweep`: a search over trainings, to a bundle."""

from __future__ import annotations

import secrets
import time
from pathlib import Path
from typing import Annotated

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

# A file system takes names of 255 bytes, and bundles and temporary names add to this one.
_LONGEST_NAME_BYTES = 100


def sweep(
    space: Annotated[Path, typer.Argument(help="A search space, such as tune_configs/demo.yaml.")],
    data: Annotated[Path, typer.Option(help="A folder in StructSeg's layout.")],
    address: AddressOption = None,
    workspace: WorkspaceOption = WORKSPACE,
    config: ConfigOption = None,
    override: SetOption = None,
    resume: Annotated[
        str | None, typer.Option(help="Name of a sweep that was cut off; it goes on, with what it was begun with.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Search, record every trial in MLflow, and write the best as a bundle.

    Example: gtvray sweep tune_configs/demo.yaml --data Naso_GTV

    A sweep whose process was killed goes on with the same command and --resume NAME; its name is shown when it begins.
    """
    from gtvray.config import load_config, load_sweep
    from gtvray.io import Workspace
    from gtvray.runtime import connect

    spec, base, place = load_sweep(space), load_config(config, override or []), Workspace(workspace)
    # Invalid settings are refused before Ray and torch are loaded.
    from gtvray.reports import record_trials_page, write_trials_page
    from gtvray.tuning import SweepJob

    name = resume or f"{_short_name(space)}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"
    progress = Progress({"data": 10, "prepare": 20, "ray": 8, "sweep": spec.time_budget_s or 3600}, as_json)
    with progress.live(), place.lock():
        job = SweepJob(spec, base, place, name, progress)
        if resume is not None:
            job.require_begun()
        project = job.open(data)
        progress.begin("ray", "connecting to Ray")
        with connect(address) as cluster:
            try:
                outcome = job.run(project, cluster)
            except BaseException:
                # An unfinished sweep has a page too, with the reasons of failed trials.
                write_trials_page(place.sweeps / name, name)
                raise
        page, sent = record_trials_page(place.sweeps / name, name, job.client, outcome.sweep_run_id)
    rows = [
        {"trial": trial.trial_id, "epochs": trial.epochs, "dsc": trial.best_dsc, **trial.point}
        for trial in outcome.result.trials
    ]
    columns = {"trial": "trial", "epochs": "epochs", "dsc": "best DSC", **{key: key for key in spec.space}}
    found = {"bundle": str(outcome.bundle.folder), "digest": outcome.bundle.digest, "run": outcome.run_id}
    go_on = shell_command("gtvray", "promote", outcome.bundle.folder, "--data", data, "--workspace", workspace)
    curves = f"learning curves: {page or 'none recorded'}"
    if page and not sent:
        curves += " (not in MLflow, which did not answer)"
    text = f"{table(rows, columns)}\n\n{curves}\nbundle: {found['bundle']}\npromote it: {go_on}"
    emit({"ok": True, "trials": rows, **found, "page": str(page) if page else None}, as_json, text)


def _short_name(space: Path) -> str:
    """The beginning of a sweep's name: its file's, cut to a length that leaves room, not hidden and not an option."""
    name = space.stem.encode()[:_LONGEST_NAME_BYTES].decode(errors="ignore").lstrip(".-").strip()
    return name or "sweep"
