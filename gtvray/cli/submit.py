"""`gtvray submit`: run a command as a job on a running cluster, and manage jobs."""

from __future__ import annotations

import sys
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gtvray.cli.common import JsonOption, emit, table
from gtvray.cli.settings import RunGroup, SettingsCommand

if TYPE_CHECKING:
    from gtvray.runtime import Jobs, JobState

app = typer.Typer(cls=RunGroup, help="Run a command as a job on a Ray cluster.", no_args_is_help=True)
DashboardOption = Annotated[
    str, typer.Option("--address", envvar="RAY_API_SERVER_ADDRESS", help="Cluster's dashboard.")
]
_DASHBOARD = "http://127.0.0.1:8265"
_JobArgument = Annotated[str, typer.Argument(help="Id of a job.")]


@app.command(RunGroup.default, cls=SettingsCommand, context_settings={"ignore_unknown_options": True})
def submit(
    command: Annotated[list[str], typer.Argument(help="The command and its options, after --.")],
    address: DashboardOption = _DASHBOARD,
    wait: Annotated[bool, typer.Option(help="Follow the job's log until it ends.")] = True,
    installed: Annotated[bool, typer.Option(help="Use the gtvray that is installed on the cluster.")] = False,
    retries: Annotated[
        int,
        typer.Option(
            min=0, max=100, help="Restarts of a sweep, training or prediction whose process is killed; each resumes it."
        ),
    ] = 2,
    as_json: JsonOption = False,
) -> None:
    """Run a command on a Ray cluster through Ray Jobs.

    The exit code is 0 if the job succeeded. The code of this gtvray and the settings files in the command are sent with
    the job; data and results are not: their paths, relative to this folder, must be those of storage that the cluster
    shares. The job does not depend on this machine. Ray sets RAY_ADDRESS in the job to the address of the cluster.

    The word "run" may be left out: gtvray submit -- COMMAND.

    Example: gtvray submit run --address http://head:8265 -- sweep demo.yaml --data /data/Naso_GTV
    """
    from gtvray.runtime import Jobs

    jobs = Jobs(address)
    job = jobs.submit(command, installed=installed, notify=partial(typer.echo, err=True), retries=retries)
    _conclude(jobs, job, _follow(jobs, job, address) if wait else None, as_json)


@app.command("list", cls=SettingsCommand)
def list_jobs(address: DashboardOption = _DASHBOARD, as_json: JsonOption = False) -> None:
    """List the jobs of a cluster, the newest first.

    Example: gtvray submit list --address http://head:8265
    """
    from gtvray.runtime import Jobs

    rows = [_row(state) for state in Jobs(address).states()]
    columns = {"job": "job", "status": "status", "began": "began", "command": "command"}
    emit(rows, as_json, table(rows, columns) if rows else "no jobs")


@app.command("status", cls=SettingsCommand)
def status(job: _JobArgument, address: DashboardOption = _DASHBOARD, as_json: JsonOption = False) -> None:
    """Show the state of a job.

    Example: gtvray submit status raysubmit_dM3xqgn2Jc --address http://head:8265
    """
    from gtvray.runtime import Jobs

    row = _row(Jobs(address).state(job))
    emit(row, as_json, "\n".join(f"{name}: {value}" for name, value in row.items() if value))


@app.command("logs", cls=SettingsCommand)
def logs(
    job: _JobArgument,
    address: DashboardOption = _DASHBOARD,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Print new lines until the job ends.")] = False,
) -> None:
    """Print the log of a job.

    Example: gtvray submit logs raysubmit_dM3xqgn2Jc --follow
    """
    from gtvray.runtime import Jobs

    jobs = Jobs(address)
    if follow:
        _follow(jobs, job, address)
    else:
        typer.echo(jobs.log(job), nl=False)


@app.command("stop", cls=SettingsCommand)
def stop(job: _JobArgument, address: DashboardOption = _DASHBOARD, as_json: JsonOption = False) -> None:
    """Stop a job as Ctrl-C would.

    Completed work is kept, and --resume continues it.

    Example: gtvray submit stop raysubmit_dM3xqgn2Jc
    """
    from gtvray.runtime import Jobs

    jobs = Jobs(address)
    jobs.stop(job)
    state = jobs.state(job)
    emit({"job": job, "status": state.status}, as_json, f"job {job} was asked to stop")


@app.command("wait", cls=SettingsCommand)
def wait_for(job: _JobArgument, address: DashboardOption = _DASHBOARD, as_json: JsonOption = False) -> None:
    """Follow a job until it ends.

    The exit code is 0 if it succeeded.

    Example: gtvray submit wait raysubmit_dM3xqgn2Jc
    """
    from gtvray.runtime import Jobs

    jobs = Jobs(address)
    _conclude(jobs, job, _follow(jobs, job, address), as_json)


def _conclude(jobs: Jobs, job: str, final: JobState | None, as_json: bool) -> None:
    """Report a job that has ended, or one that was submitted or detached from."""
    from gtvray.errors import FailureError

    state = jobs.state(job) if final is None else final
    if final is not None and final.status != "SUCCEEDED":
        raise FailureError("job did not succeed", where=job, found=final.status, do=f"gtvray submit logs {job}")
    emit({"job": job, "status": state.status}, as_json, f"job {job}")


def _follow(jobs: Jobs, job: str, address: str) -> JobState | None:
    """Copy the log of a job to stderr until the job ends; return None if the user detaches from it."""
    while True:
        try:
            return jobs.follow(job, lambda text: typer.echo(text, nl=False, err=True))
        except KeyboardInterrupt:
            answer = _ask(job, address)
        if answer == "d":
            return None
        if answer == "s":
            jobs.stop(job)


def _ask(job: str, address: str) -> str:
    """Ask after Ctrl-C whether to detach from the job, stop it or keep following it.

    Raises:
        FailureError: there is no terminal to ask on.
    """
    from gtvray.errors import FailureError

    where = f"--address {address}"
    if not sys.stdin.isatty():
        raise FailureError(
            "no longer following the job, which continues to run",
            where=job,
            do=f"gtvray submit wait {job} {where}, or gtvray submit stop {job} {where}",
        )
    typer.echo(f"\njob {job} continues to run without this command", err=True)
    answer = typer.prompt("d: detach, s: stop it, f: keep following", default="d", err=True)
    return str(answer).strip().lower()[:1]


def _row(state: JobState) -> dict[str, Any]:
    moments = {"began": state.began_s, "ended": state.ended_s}
    texts = {
        name: datetime.fromtimestamp(at_s).astimezone().isoformat(" ", "seconds") if at_s else None
        for name, at_s in moments.items()
    }
    return {"job": state.job, "status": state.status, **texts, "command": state.command, "message": state.message}
