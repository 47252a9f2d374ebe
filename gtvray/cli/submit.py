"""`gtvray submit -- VERB ...`: a verb as a job on a running cluster."""

from __future__ import annotations

import shlex
import sys
import time
from typing import Annotated

import typer

from gtvray.cli.common import JsonOption, emit

_POLL_S = 1.0


def submit(
    verb: Annotated[list[str], typer.Argument(help="The verb and its options, after --.")],
    address: Annotated[
        str, typer.Option(envvar="RAY_API_SERVER_ADDRESS", help="The cluster's dashboard.")
    ] = "http://127.0.0.1:8265",
    wait: Annotated[bool, typer.Option(help="Follow the job's log to its end.")] = True,
    as_json: JsonOption = False,
) -> None:
    """Run a verb on a Ray cluster through Ray Jobs; its exit code is 0 if the job succeeded.

    The job runs on the cluster's head, with this environment's Python: paths must be seen from there. Ray tells the job
    of its cluster through RAY_ADDRESS.

    Example: gtvray submit --address http://head:8265 -- sweep demo.yaml --data /data/Naso_GTV
    """
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobStatus, JobSubmissionClient

    from gtvray.errors import AuthError, FailureError, ResourceError
    from gtvray.runtime import TOKEN_ADVICE, bypass_proxies, proxy_for, without_credentials

    # Ray's client reads the proxies of the environment, also for a dashboard on this machine.
    bypass_proxies(address)
    proxy = proxy_for(address)
    try:
        client = JobSubmissionClient(address)
        entry = [sys.executable, "-m", "gtvray", *verb]
        job = client.submit_job(entrypoint=shlex.join(entry), metadata={"gtvray.verb": verb[0]})
    except AuthenticationError as error:
        raise AuthError("the Ray cluster wants its token", where=address, do=TOKEN_ADVICE) from error
    except (OSError, RuntimeError) as error:
        raise ResourceError(
            "no Ray cluster takes jobs here",
            where=f"{address}, through the proxy {without_credentials(proxy)}" if proxy else address,
            found=str(error).strip().splitlines()[0],
            do="start one with `ray start --head`, or correct --address"
            + (", or name its host in NO_PROXY" if proxy else ""),
        ) from error
    if wait:
        shown = 0
        while True:
            status = client.get_job_status(job)
            log = client.get_job_logs(job)
            typer.echo(log[shown:], nl=False, err=True)
            shown = len(log)
            if status.is_terminal():
                break
            time.sleep(_POLL_S)
        if status != JobStatus.SUCCEEDED:
            raise FailureError("the job did not succeed", where=job, found=status.value, do=f"ray job logs {job}")
    emit({"job": job, "status": str(client.get_job_status(job).value)}, as_json, f"job {job}")
