"""`gtvray sweep`: a hyperparameter search that ends in a bundle."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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

if TYPE_CHECKING:
    from gtvray.api import SweepRun
    from gtvray.tracking import Trial


def sweep(
    space: Annotated[Path, typer.Argument(help="Search space, such as tune_configs/demo.yaml.")],
    data: Annotated[Path | None, typer.Option(help="Dataset with masks; optional with --describe.")] = None,
    address: AddressOption = None,
    workspace: WorkspaceOption = WORKSPACE,
    config: ConfigOption = None,
    override: SetOption = None,
    resume: Annotated[
        str | None, typer.Option(help="Name of an earlier sweep to continue with the same arguments.")
    ] = None,
    extend: Annotated[int, typer.Option(min=0, help="With --resume: number of further trials.")] = 0,
    budget: Annotated[
        str | None, typer.Option(help="Time budget, such as 90s, 45m or 2h, instead of that of the file.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Prepare and check the data, print what would run, and stop.")
    ] = False,
    describe: Annotated[bool, typer.Option("--describe", help="Print what would run from the settings alone.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Search over trainings, record every trial in MLflow, and write the bundle of the best one.

    Example: gtvray sweep tune_configs/demo.yaml --data Naso_GTV

    The name of the sweep and the command that resumes it are printed at the start and whenever it stops. The exit code
    is 1 if a trial failed, even if there is a bundle.
    """
    from gtvray import api
    from gtvray.config import load_config, load_sweep
    from gtvray.errors import InputError

    spec = load_sweep(space)
    if budget is not None:
        spec = spec.model_copy(update={"time_budget_s": seconds_of(budget)})
    settings = load_config(config, override or [])
    if data is None and not describe:
        raise InputError("a sweep needs data", do="name a dataset with --data")
    progress = Progress({"data": 10, "prepare": 20, "ray": 8, "sweep": spec.time_budget_s or 0}, as_json)
    if describe or dry_run:
        with progress.live():
            found = api.describe_sweep(
                spec, None if describe else data, config=settings, workspace=workspace, show=progress
            )
        emit(asdict(found) | {"ok": True}, as_json, found.text())
        return
    assert data is not None
    session = _Session(space, data, workspace, config, override or [], address)
    try:
        with progress.live():
            run = api.sweep(
                spec,
                data,
                config=settings,
                resume=resume,
                extend=extend,
                base_name=space.stem,
                workspace=workspace,
                address=address,
                show=progress,
                on_start=session.start,
            )
    except BaseException:
        session.stop()
        raise
    _print(run, spec.space, data, workspace, session, as_json)
    if run.outcome.result.failed:
        raise typer.Exit(1)


class _Session:
    """The name of the running sweep and the command that continues it."""

    def __init__(
        self,
        space: Path,
        data: Path,
        workspace: Path,
        config: Path | None,
        override: list[str],
        address: str | None,
    ) -> None:
        options: list[object] = ["--data", data, "--workspace", workspace]
        options += [] if config is None else ["--config", config]
        options += [] if address is None else ["--address", address]
        self._words: list[object] = ["gtvray", "sweep", space, *override, *options]
        self.name: str | None = None

    @property
    def command(self) -> str:
        """The command that resumes the sweep."""
        return shell_command(*self._words, "--resume", self.name)

    def start(self, name: str) -> None:
        """Print name and command."""
        self.name = name
        sys.stderr.write(f"sweep {name}\nresume it: {self.command}\n")

    def stop(self) -> None:
        """Print them again, below everything else, if the sweep has started."""
        if self.name is not None:
            sys.stderr.write(f"sweep {self.name} is not finished\nresume it: {self.command}\n")


def seconds_of(text: str) -> float:
    """Return the seconds of a duration such as 90s, 45m or 2h.

    Raises:
        InputError: it is not a duration.
    """
    from gtvray.errors import InputError

    number, unit = text[:-1], {"s": 1, "m": 60, "h": 3600, "d": 86_400}.get(text[-1:])
    try:
        seconds = float(number) * unit if unit is not None else -1.0
    except ValueError:
        seconds = -1.0
    if not 0 < seconds < float("inf"):
        raise InputError("not a duration", where="--budget", expected="such as 90s, 45m or 2h", found=text)
    return seconds


def _print(run: SweepRun, keys: Any, data: Path, workspace: Path, session: _Session, as_json: bool) -> None:
    outcome, page, result = run.outcome, run.outcome.page, run.outcome.result
    rows = trial_rows(run)
    columns = {"trial": "trial", "origin": "origin", "epochs": "epochs", "dsc": "best DSC", "ending": "ending"}
    found: dict[str, Any] = {
        "name": run.name,
        "best": result.best.trial_id,
        "bundle": str(outcome.bundle.folder),
        "digest": outcome.bundle.digest,
        "run": outcome.run_id,
        "sweep_run": outcome.sweep_run_id,
        "failed": result.failed,
        "resume": session.command,
    }
    curves = f"learning curves: {page or 'none recorded'}"
    found |= tracking_found(outcome.delivered, outcome.refused)
    lines = [table(rows, {**columns, **{key: key for key in keys}}), "", curves]
    if result.failed:
        lines.append(f"{result.failed} of {len(result.ended)} trials failed: see their endings above")
    if result.unfinished:
        lines.append(f"the time budget stopped {len(result.unfinished)} trials; with --budget they continue")
    promote = shell_command("gtvray", "promote", outcome.bundle.folder, "--data", data, "--workspace", workspace)
    confirmation = outcome.confirmation
    if confirmation is not None:
        found["against_default"] = {"verdict": confirmation.verdict, "text": confirmation.text}
        lines.append(confirmation.text)
    if outcome.default_bundle is not None:
        found["default_bundle"] = str(outcome.default_bundle)
        lines.append(f"bundle of the default settings: {outcome.default_bundle}")
    if outcome.front is not None:
        found["front"] = {"trials": outcome.front.trials, "hypervolume": outcome.front.hypervolume}
        names = list(outcome.front.objectives)
        points = [
            {"trial": name, **dict(zip(names, value, strict=True))} for name, value in outcome.front.trials.items()
        ]
        lines += [f"Pareto front, hypervolume {outcome.front.hypervolume:.3f}; each trial has a bundle of its name:"]
        lines += [table(points, {"trial": "trial", **{name: name for name in names}}), ""]
    lines += tracking_lines(outcome.delivered, outcome.refused, session.command)
    lines += [f"bundle: {found['bundle']} (of {result.best.trial_id})", f"promote it: {promote}"]
    lines.append(f"sweep: {run.name}; resume or extend it: {session.command}")
    text = "\n".join(lines)
    emit({"ok": not result.failed, "trials": rows, **found, "page": str(page) if page else None}, as_json, text)


def trial_rows(run: SweepRun) -> list[dict[str, Any]]:
    """Return a row per trial: those that can win by rank, then the others."""
    result = run.outcome.result
    trials: dict[str, Trial] = {trial.trial_id: trial for trial in result.ended}
    best = {trial.trial_id: trial.best_dsc for trial in result.trials}
    order = [*best, *(name for name in trials if name not in best)]
    return [
        {
            "trial": name,
            "origin": trials[name].origin,
            "epochs": len(trials[name].epochs),
            "dsc": best.get(name),
            "state": trials[name].state,
            "ending": trials[name].ending,
            "reason": trials[name].reason,
            **trials[name].settings,
        }
        for name in order
    ]
