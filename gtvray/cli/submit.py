"""`gtvray submit -- COMMAND ...`: run a command as a job on a running cluster."""

from __future__ import annotations

import asyncio
import os
import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Annotated

import typer

from gtvray.cli.common import JsonOption, emit

if TYPE_CHECKING:
    from ray.job_submission import JobStatus, JobSubmissionClient

_POLL_S = 1.0
# Agents of a new cluster register within seconds.
_AGENT_WAIT_S = 30.0
_RAY_ADDRESSES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")


def submit(
    command: Annotated[list[str], typer.Argument(help="The command and its options, after --.")],
    address: Annotated[
        str, typer.Option(envvar="RAY_API_SERVER_ADDRESS", help="The cluster's dashboard.")
    ] = "http://127.0.0.1:8265",
    wait: Annotated[bool, typer.Option(help="Follow the job's log until it ends.")] = True,
    as_json: JsonOption = False,
) -> None:
    """Run a command on a Ray cluster through Ray Jobs; the exit code is 0 if the job succeeded.

    The job runs on the head node with the Python of this environment, so paths must exist there. Ray sets RAY_ADDRESS
    in the job to the address of the cluster.

    Example: gtvray submit --address http://head:8265 -- sweep demo.yaml --data /data/Naso_GTV
    """
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobStatus, JobSubmissionClient

    from gtvray.errors import AuthError, FailureError, ResourceError
    from gtvray.runtime import TOKEN_ADVICE, bypass_proxies, proxy_for, without_credentials

    # Ray's client uses the proxies of the environment even for a dashboard on this machine.
    bypass_proxies(address)
    proxy = proxy_for(address)
    try:
        with _without_ray_addresses():
            client = JobSubmissionClient(address)
        job = _submit(client, [sys.executable, "-m", "gtvray", *command])
    except AuthenticationError as error:
        raise AuthError("the Ray cluster requires a token", where=address, do=TOKEN_ADVICE) from error
    except (OSError, RuntimeError) as error:
        raise ResourceError(
            "cannot submit a job to a Ray cluster",
            where=f"{address}, through the proxy {without_credentials(proxy)}" if proxy else address,
            found=str(error).strip().splitlines()[0],
            do="start a cluster with `ray start --head`, or correct --address"
            + (", or add its host to NO_PROXY" if proxy else ""),
        ) from error
    status = _follow(client, job, streaming=proxy is None) if wait else client.get_job_status(job)
    if wait and status != JobStatus.SUCCEEDED:
        raise FailureError("job did not succeed", where=job, found=status.value, do=f"ray job logs {job}")
    emit({"job": job, "status": str(status.value)}, as_json, f"job {job}")


@contextmanager
def _without_ray_addresses() -> Iterator[None]:
    """Hide Ray's address variables, which its client prefers to the address that it is given."""
    hidden = {name: os.environ.pop(name) for name in _RAY_ADDRESSES if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(hidden)


def _submit(client: JobSubmissionClient, command: list[str]) -> str:
    """Submit a job; retry while the agents of a cluster that has just started are not ready."""
    deadline = time.monotonic() + _AGENT_WAIT_S
    while True:
        try:
            return str(client.submit_job(entrypoint=shlex.join(command), metadata={"gtvray.verb": command[3]}))
        except RuntimeError as error:
            if "No available agent" not in str(error) or time.monotonic() > deadline:
                raise
        time.sleep(_POLL_S)


def _follow(client: JobSubmissionClient, job: str, *, streaming: bool) -> JobStatus:
    """Copy the log of a job to stderr until the job ends; returns its final status.

    Args:
        client: client of the cluster.
        job: id of the job.
        streaming: receive the log over a WebSocket, which Ray's client cannot open through a proxy.
    """
    from aiohttp import ClientError

    shown = 0

    async def stream() -> None:
        nonlocal shown
        async for text in client.tail_job_logs(job):
            typer.echo(text, nl=False, err=True)
            shown += len(text)

    if streaming:
        # An interrupted stream is not a failure of the job: the rest of the log is polled below.
        with suppress(ClientError, OSError, RuntimeError):
            asyncio.run(stream())
    while True:
        status = client.get_job_status(job)
        log = client.get_job_logs(job)
        typer.echo(log[shown:], nl=False, err=True)
        shown = len(log)
        if status.is_terminal():
            return status
        time.sleep(_POLL_S)
