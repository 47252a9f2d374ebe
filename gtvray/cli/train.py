"""`gtvray train`: one training or all folds of a cross-validation, to a bundle."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from gtvray import NOTICE
from gtvray.cli.common import (
    WORKSPACE,
    AddressOption,
    JsonOption,
    Progress,
    SetOption,
    WorkspaceOption,
    emit,
    ended_by_second_interrupt,
    shell_command,
    table,
)
from gtvray.cli.recorded import tracking_found, tracking_lines

if TYPE_CHECKING:
    from gtvray.crossval import CrossValidation, FoldStatus, TrainOutcome
    from gtvray.training import Plan

_WORST_SHOWN = 10
_STAGES = {"data": 10.0, "prepare": 20.0, "ray": 8.0, "train": 3600.0, "score": 60.0, "bundle": 2.0}


def train(
    config: Annotated[Path | None, typer.Argument(help="A YAML file of settings.")] = None,
    data: Annotated[Path | None, typer.Option(help="A dataset with masks.")] = None,
    fold: Annotated[
        str | None, typer.Option(help="Number of a fold, or all; by default the training cases of the split are used.")
    ] = None,
    folds: Annotated[int, typer.Option(min=2, help="Number of folds.")] = 5,
    resume: Annotated[
        str | None,
        typer.Option(
            help="Name of an interrupted training to resume with its own data and settings; tracking.uri may change."
        ),
    ] = None,
    address: AddressOption = None,
    workspace: WorkspaceOption = WORKSPACE,
    override: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train one network, or one per fold, and write their bundle.

    Every fold is scored on its own cases beside the baseline; the bundle has the networks of all folds as an ensemble.

    Folds run in parallel as far as the cluster has free resources, each from its newest checkpoint. A failed fold does
    not stop the others. Held-out cases are not used; `gtvray promote` scores them.

    Example: gtvray train my.yaml optimizer.lr=3e-4 --data Naso_GTV --fold all
    """
    from gtvray import api
    from gtvray.config import load_config, read_settings

    _require_consistent(resume, data, config, fold)
    settings = load_config(config, override or []) if resume is None else read_settings(override or [])
    progress = FoldProgress(_STAGES, as_json)
    with ended_by_second_interrupt(lambda: ""), progress.live():
        outcome = api.train(
            data,
            config=settings,
            fold=_fold(fold),
            folds=folds,
            resume=resume,
            name=config.stem if config is not None else "defaults",
            workspace=workspace,
            address=address,
            show=progress,
            on_plan=lambda plan: progress.print(_plan_text(plan)),
            on_folds=progress.folds,
        )
    found = _found(outcome)
    emit(found, as_json, outcome_text(outcome, workspace))
    if outcome.failures:
        for name, reason in outcome.failures.items():
            typer.echo(f"error: {name} failed: {reason}", err=True)
        typer.echo(f"  do: correct it, then {_resume_command(outcome, workspace)}", err=True)
        raise typer.Exit(1)


class FoldProgress(Progress):
    """Progress by stage; on a terminal, with one line per fold below it while folds train."""

    def __init__(self, expected_s: Mapping[str, float], quiet: bool) -> None:
        super().__init__(expected_s, quiet)
        self._statuses: list[FoldStatus] = []

    def folds(self, statuses: list[FoldStatus]) -> None:
        """Update the status of the folds."""
        self._statuses = statuses
        done = sum(status.epoch for status in statuses)
        total = sum(status.epochs for status in statuses)
        self.advance(done, total, f"{done} of {total} epochs")

    def note(self, text: str) -> None:
        """Print lines that stay on the screen above the live display."""
        self.print(text)

    def print(self, text: str) -> None:
        """Print lines above the live display."""
        if self._terminal and self._status is not None:
            self._status.print(text)
        elif not self._silent:
            sys.stderr.write(f"{text}\n")

    @contextmanager
    def live(self) -> Iterator[FoldProgress]:
        """Keep the lines on the screen for the length of a `with` block."""
        if not self._terminal:
            yield self
            return
        from rich.console import Console
        from rich.live import Live

        with Live(console=Console(stderr=True), transient=True, refresh_per_second=4) as screen:
            self._status = _Screen(screen, self)
            yield self
        self._status = None

    def rows(self) -> list[dict[str, Any]]:
        """Return one row per fold, for a table."""
        return [
            {
                "fold": status.fold,
                "state": status.state,
                "epoch": f"{status.epoch}/{status.epochs}",
                "loss": status.loss,
                "dsc": status.dsc,
                "best": status.best_dsc,
                "rate": _rounded(status.patches_per_s, "{:.1f}"),
                "wait": _rounded(status.data_wait_share, "{:.1%}"),
                "left": _minutes(status.left_s),
                "note": status.note,
            }
            for status in self._statuses
        ]


_COLUMNS = {
    "fold": "fold",
    "state": "state",
    "epoch": "epoch",
    "loss": "loss",
    "dsc": "DSC",
    "best": "best DSC",
    "rate": "patches/s",
    "wait": "data wait",
    "left": "left",
    "note": "",
}


class _Screen:
    """Live display of the stage line and the table of folds."""

    def __init__(self, screen: Any, progress: FoldProgress) -> None:
        self._screen, self._progress = screen, progress

    def print(self, text: str) -> None:
        self._screen.console.print(text, markup=False, highlight=False)

    def update(self, line: str) -> None:
        from rich.console import Group
        from rich.text import Text

        rows = self._progress.rows()
        below = [Text(table(rows, _COLUMNS))] if rows else []
        self._screen.update(Group(Text.from_markup(line), *below))


def _fold(text: str | None) -> int | Literal["all"] | None:
    from gtvray.errors import InputError

    if text is None:
        return None
    if text == "all":
        return "all"
    if not text.isdecimal():
        raise InputError("no such fold", where="--fold", expected="a number from 0, or all", found=text)
    return int(text)


def _require_consistent(resume: str | None, data: Path | None, *others: object) -> None:
    from gtvray.errors import InputError

    if resume is None and data is None:
        raise InputError("no data to train on", do="name a dataset with --data, or a training with --resume")
    if resume is not None and any(other is not None for other in (data, *others)):
        raise InputError(
            "a resumed training has its own settings, data and folds",
            where="--resume",
            do="omit the other options, or start a new training",
        )


def _plan_text(plan: Plan) -> str:
    from gtvray.training import describe_plan

    return describe_plan(plan)


def _found(outcome: TrainOutcome) -> dict[str, Any]:
    return {
        "ok": not outcome.failures,
        "name": outcome.name,
        "folder": str(outcome.folder),
        "bundle": str(outcome.bundle.folder),
        "digest": outcome.bundle.digest,
        "members": outcome.bundle.members,
        "threshold": outcome.bundle.inference.threshold,
        "keep_largest": outcome.bundle.inference.keep_largest,
        "run": outcome.run_id,
        **tracking_found(outcome.delivered, outcome.refused),
        **outcome.validation.as_dict(),
        "failed": outcome.failures,
        "notice": NOTICE,
    }


def outcome_text(outcome: TrainOutcome, workspace: Path) -> str:
    """Format the worst cases, the folds beside their baselines, and the next command."""
    validation, bundle = outcome.validation, outcome.bundle
    cases = sorted(validation.rows(), key=lambda row: row["dsc"])
    shown = cases[:_WORST_SHOWN]
    promote = shell_command("gtvray", "promote", bundle.folder, "--data", outcome.data, "--workspace", workspace)
    headings = {"fold": "fold", "case": "case", "dsc": "DSC", "hd95_mm": "HD95 mm"}
    headings |= {"baseline_dsc": "baseline DSC", "baseline_hd95_mm": "baseline HD95 mm"}
    lines = [
        f"the worst {len(shown)} of {len(cases)} cases, on their original grids:",
        table(shown, headings),
        "",
        _folds_table(validation),
        "",
        f"all cases: {outcome.folder / 'scores.md'}",
        f"bundle: {bundle.folder} ({bundle.members} networks, threshold {bundle.inference.threshold:.2f})",
        f"promote it: {promote}",
    ]
    lines += tracking_lines(outcome.delivered, outcome.refused, _resume_command(outcome, workspace))
    return "\n".join([*lines, NOTICE])


def _resume_command(outcome: TrainOutcome, workspace: Path) -> str:
    return shell_command("gtvray", "train", "--resume", outcome.name, "--workspace", workspace)


def _folds_table(validation: CrossValidation) -> str:
    scores = validation.as_dict()
    rows = []
    for name, each in [*((fold["fold"], fold) for fold in scores["folds"]), ("all", scores["all"])]:
        row = {"fold": name, "cases": each["summary"]["cases"]}
        for who in ("summary", "baseline"):
            for metric in ("dsc", "hd95_mm"):
                spread = each[who][metric]
                row |= {f"{who}_{metric}": spread["mean"], f"{who}_{metric}_median": spread["median"]}
                row[f"{who}_{metric}_interval"] = _interval(spread["interval"])
        rows.append(row)
    columns = {
        "fold": "fold",
        "cases": "cases",
        "summary_dsc": "DSC",
        "summary_dsc_median": "median",
        "summary_dsc_interval": "95 %",
        "summary_hd95_mm": "HD95 mm",
        "summary_hd95_mm_median": "median",
        "summary_hd95_mm_interval": "95 %",
        "baseline_dsc": "baseline DSC",
        "baseline_hd95_mm": "baseline HD95 mm",
    }
    return table(rows, columns)


def _interval(ends: list[float] | None) -> str:
    return "-" if ends is None else f"{ends[0]:.3g} to {ends[1]:.3g}"


def _rounded(value: float | None, form: str) -> str | None:
    return None if value is None else form.format(value)


def _minutes(seconds: float | None) -> str | None:
    return None if seconds is None else f"{int(seconds // 60)}:{int(seconds % 60):02d}"
