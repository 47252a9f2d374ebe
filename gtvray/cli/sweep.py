"""`gtvray sweep`: run a hyperparameter search and write the bundle of the best trial."""

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
    ended_by_second_interrupt,
    shell_command,
)
from gtvray.cli.sweep_result import sweep_result, sweep_text

if TYPE_CHECKING:
    from gtvray.api import SweepRun
    from gtvray.config import Config


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
        str | None,
        typer.Option(
            help="Total time budget, such as 90s, 45m or 2h, including the time before a resume; overrides the one in "
            "the file."
        ),
    ] = None,
    promote: Annotated[
        bool, typer.Option("--promote", help="Promote the best trial at the end, if it passes the gate.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Prepare and check the data, print what would run, and stop.")
    ] = False,
    describe: Annotated[bool, typer.Option("--describe", help="Print what would run from the settings alone.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Search for settings and write the bundle of the best trial.

    Every trial is recorded in MLflow. KEY=VALUE replaces a setting in `base` of the file; for a searched key it is the
    value of the first trial.

    Example: gtvray sweep tune_configs/demo.yaml --data Naso_GTV

    The name of the sweep and the command that resumes it are printed at the start and whenever it stops. The exit code
    is 1 if a trial failed, even if there is a bundle.
    """
    from gtvray import api
    from gtvray.config import load_config, load_sweep
    from gtvray.errors import InputError

    _require_run(dry_run or describe, {"--resume": resume, "--extend": extend, "--promote": promote})
    spec = load_sweep(space).without_base(override or [])
    if budget is not None:
        spec = spec.model_copy(update={"time_budget_s": seconds_of(budget)})
    settings = load_config(config, override or [])
    if data is None and not describe:
        raise InputError("a sweep needs data", do="name a dataset with --data")
    progress = Progress({"data": 10, "prepare": 20, "ray": 8, "sweep": spec.time_budget_s or 0}, as_json)
    if describe or dry_run:
        with progress.live():
            description = api.describe_sweep(
                spec,
                None if describe else data,
                config=settings,
                workspace=workspace,
                address=address,
                show=progress,
            )
        emit(asdict(description) | {"ok": True}, as_json, description.text())
        return
    assert data is not None
    session = _Session(space, data, workspace, config, override or [], address, budget)

    def start(name: str) -> None:
        from gtvray.tracking import TrialRecord

        session.start(name)
        if spec.time_budget_s is not None:
            spent_s = TrialRecord(workspace / "sweeps" / name).elapsed_s
            progress.expect("sweep", max(spec.time_budget_s - spent_s, 0.0))

    try:
        with ended_by_second_interrupt(session.resume_hint), progress.live():
            run = api.sweep(
                spec,
                data,
                config=settings,
                resume=resume,
                extend=extend,
                base_name=space.name,
                workspace=workspace,
                address=address,
                show=progress,
                on_start=start,
            )
    except BaseException:
        session.stop()
        raise
    promotion = _promote(run, data, workspace, settings, progress) if promote else None
    outcome = run.outcome
    words = ("gtvray", "promote", outcome.bundle.folder, "--data", data, "--workspace", workspace)
    found = sweep_result(run) | {"resume": session.command} | ({} if promotion is None else {"promotion": promotion})
    text = sweep_text(run, spec.space, resume=session.command, promote=shell_command(*words), promotion=promotion)
    emit(found, as_json, text)
    if run.outcome.result.failed or (promotion is not None and "error" in promotion):
        raise typer.Exit(1)


def _require_run(described: bool, options: dict[str, object]) -> None:
    """Refuse options that have no effect with --dry-run or --describe."""
    from gtvray.errors import InputError

    found = [name for name, value in options.items() if value]
    if described and found:
        raise InputError(
            "these options cannot be combined with --dry-run or --describe, which describe a new sweep and run nothing",
            found=", ".join(found),
            do="omit them, or run the sweep without --dry-run and --describe",
        )


def _promote(run: SweepRun, data: Path, workspace: Path, config: Config, progress: Progress) -> dict[str, Any]:
    """Promote the best trial, or the default settings if it is worse; return the version, or why it was refused."""
    from gtvray import api
    from gtvray.errors import GtvrayError
    from gtvray.io import Workspace
    from gtvray.tracking import mlflow_errors

    outcome = run.outcome
    worse = outcome.confirmation is not None and outcome.confirmation.verdict == "worse"
    bundle = outcome.default_bundle if worse and outcome.default_bundle is not None else outcome.bundle.folder
    uri, _ = Workspace(workspace).tracking_store(config.tracking.uri)
    try:
        # A fault of MLflow must not end the command before it has printed the results of the sweep.
        with progress.live(), mlflow_errors(uri, do="check the server and tracking.uri, and promote the bundle"):
            promoted = api.promote(bundle, data, workspace=workspace, config=config, show=progress)
    except GtvrayError as error:
        sys.stderr.write(f"error: {error}\n")
        return {"bundle": str(bundle), "error": error.problem()}
    return {"bundle": str(bundle), "version": promoted.version.version, "digest": promoted.digest}


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
        budget: str | None,
    ) -> None:
        options: list[object] = ["--data", data, "--workspace", workspace]
        options += [] if config is None else ["--config", config]
        options += [] if address is None else ["--address", address]
        options += [] if budget is None else ["--budget", budget]
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
        """Print name and command again at the end, if the sweep has started."""
        sys.stderr.write(self.resume_hint())

    def resume_hint(self) -> str:
        """Return how to continue the sweep; empty before it has started."""
        return "" if self.name is None else f"sweep {self.name} is not finished\nresume it: {self.command}\n"


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
