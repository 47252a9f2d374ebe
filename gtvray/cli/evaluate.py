"""`gtvray evaluate`: score models and the baseline on a dataset."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gtvray import NOTICE
from gtvray.cli.common import (
    WORKSPACE,
    ConfigOption,
    JsonOption,
    OverwriteOption,
    Progress,
    SetOption,
    WorkspaceOption,
    emit,
    shell_command,
    terminal_width,
)

if TYPE_CHECKING:
    from gtvray.api import Evaluation
    from gtvray.evaluation import Outcome
    from gtvray.io import Workspace


def evaluate(
    data: Annotated[Path | None, typer.Option(help="A dataset with masks.")] = None,
    model: Annotated[
        list[str] | None,
        typer.Option("--model", "-m", help="A bundle's folder, a version, or champion; several are ranked."),
    ] = None,
    baseline: Annotated[
        Path | None, typer.Option(help="Training dataset for computing the mean-position baseline.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder for masks and report.")] = None,
    send: Annotated[
        Path | None, typer.Option(help="Only send a report folder to MLflow, if MLflow was unreachable before.")
    ] = None,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 1,
    overwrite: OverwriteOption = False,
    workspace: WorkspaceOption = WORKSPACE,
    config: ConfigOption = None,
    override: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Score models on a dataset and write a report.

    Masks are scored on the original grid of their scans; `report.html` has the scores per case and all summaries.

    Example: gtvray evaluate --data val --model champion --baseline train
    """
    from gtvray import api
    from gtvray.config import load_config
    from gtvray.errors import InputError
    from gtvray.io import Workspace

    folders, settings = Workspace(workspace), load_config(config, override or [])
    if (data is None) == (send is None):
        raise InputError("a dataset or a report is required", expected="--data or --send", do="pass one of the two")
    if send is not None:
        runs = api.send_report(send, workspace=folders, config=settings)
        emit({"mlflow": runs}, as_json, _runs_text(runs))
        return
    assert data is not None
    progress = Progress({"check": 5, "baseline": 10, "evaluate": 60, "report": 5}, as_json)
    with progress.live():
        result = api.evaluate(
            data,
            model or ["champion"],
            baseline=baseline,
            out=out,
            overwrite=overwrite,
            threads=threads,
            workspace=folders,
            config=settings,
            show=progress,
        )
    found = {**result.outcome.as_dict(), "report": str(result.report), "mlflow": result.runs}
    lines = [_text(result.outcome), *result.outcome.warnings, f"report: {result.report}", _sent_text(result, folders)]
    emit(found, as_json, "\n".join([*lines, NOTICE]))


def _text(outcome: Outcome) -> str:
    """Ranking, differences and every model's cases, as text for a terminal."""
    from gtvray.reports import case_table, difference_table, ranking_table

    tables = {outcome.data.title: ranking_table(outcome.comparison)}
    if outcome.comparison.differences:
        tables["Differences, case by case"] = difference_table(outcome.comparison)
    tables |= {name: case_table(of_model) for name, of_model in outcome.scores.items()}
    return "\n".join(f"{title}\n\n{shown.text(terminal_width())}\n" for title, shown in tables.items())


def _runs_text(runs: dict[str, str]) -> str:
    return "\n".join(f"{name}: MLflow run {run}" for name, run in runs.items())


def _sent_text(result: Evaluation, folders: Workspace) -> str:
    error = result.failure
    if error is None:
        return _runs_text(result.runs or {})
    again = shell_command("gtvray", "evaluate", "--send", result.report, "--workspace", folders.root)
    reason = "; ".join(error.fields[name] for name in ("found", "do") if name in error.fields)
    return f"not in MLflow: {error.what} ({reason}); send it later: {again}"
