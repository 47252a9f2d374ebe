"""gtvray commands as jobs of a Ray cluster, which keep running without this machine."""

from __future__ import annotations

import asyncio
import os
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gtvray.errors import AuthError, InputError, NotFoundError, ResourceError, first_line
from gtvray.failpoints import variables as failpoint_variables
from gtvray.runtime.attempts import CONTINUED
from gtvray.runtime.package import absolute, check_size, locate_words, package_code
from gtvray.runtime.proxies import bypass_proxies, proxy_for, without_credentials
from gtvray.runtime.reach import MODULE, Looked, Needed, needed_by, read_result
from gtvray.runtime.run_id import RUN_ID_VARIABLE
from gtvray.runtime.tokens import TOKEN_ADVICE

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

# The job's process compares it with its own version.
VERSION_VARIABLE = "GTVRAY_SUBMITTED_VERSION"
WORKSPACE_VARIABLE = "GTVRAY_WORKSPACE"
# The run that the job continues, and the person who records of the job name.
_FORWARDED = (RUN_ID_VARIABLE, "GTVRAY_WHO")
_POLL_S, _CHECK_POLL_S = 1.0, 0.3
# A check of paths that takes longer, such as on a busy head, does not hold up the command, which has checks of its own.
_CHECK_S = 300.0
# The command that `JobState.command` shows for such a check, and how long its record is kept: Ray's job manager writes
# a record anew, as that of a failed job, if it is removed before the manager has noticed the end of the job.
_CHECK, _CHECK_KEPT_S = "check of paths", 60.0
# After this time the user is notified of what is being waited for.
_PATIENCE_S = 20.0
# Agents of a new cluster register within seconds.
_AGENT_WAIT_S = 30.0
_RAY_ADDRESSES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
# The Python of this environment if the head has it at the same path, otherwise the head's own.
_ENTRYPOINT = 'python={python}; [ -x "$python" ] || python=python3; exec "$python" -m {command}'


@dataclass(frozen=True)
class JobState:
    """A job.

    Attributes:
        job: id of the job.
        status: PENDING, RUNNING, STOPPED, SUCCEEDED or FAILED.
        command: the command, as it was submitted.
        began_s, ended_s: start and end in seconds since the Unix epoch; None before.
        message: Ray's status message.
    """

    job: str
    status: str
    command: str
    began_s: float | None
    ended_s: float | None
    message: str

    @property
    def is_over(self) -> bool:
        """Whether the job has ended."""
        return self.status in ("STOPPED", "SUCCEEDED", "FAILED")


class Jobs:
    """Jobs of a cluster.

    Args:
        address: URL of the cluster's dashboard.

    Raises:
        AuthError: the cluster requires a token.
        InputError: the cluster runs another version of Ray.
        ResourceError: it does not answer.
    """

    def __init__(self, address: str) -> None:
        # Ray's client uses the proxies of the environment even for a dashboard on this machine.
        bypass_proxies(address)
        self._address, self._proxy = address, proxy_for(address)
        with self._errors(), _without_ray_addresses():
            from ray.job_submission import JobSubmissionClient

            self._client: JobSubmissionClient = JobSubmissionClient(address)
            self._require_same_ray()

    def submit(
        self, command: Sequence[str], *, installed: bool, notify: Callable[[str], None], retries: int = 0
    ) -> str:
        """Submit a gtvray command whose paths exist on the cluster; return the id of the job.

        Args:
            command: name and arguments; relative paths are those of this machine.
            installed: run the gtvray that is installed on the cluster; otherwise the code of this one is uploaded.
            notify: gets a line if the check of the paths takes long, and why it could not be done on a node or at all.
            retries: maximum number of restarts after the process was killed, for commands that can be continued.

        Raises:
            InputError: a node lacks a path of the command.
            TooLargeError: the code is too large.
            AuthError, ResourceError: as for the constructor.
        """
        with tempfile.TemporaryDirectory(prefix="gtvray-job-") as scratch:
            folder = None if installed else Path(scratch)
            if folder is not None:
                package_code(folder)
            words = locate_words(command, folder)
            if folder is not None:
                check_size(folder)
            module = ["gtvray.runtime.attempts", str(retries)] if retries and words[0] in CONTINUED else ["gtvray"]
            with self._errors():
                environment = _runtime_env(folder)
                self._require_paths(needed_by(words), environment, notify)
                return self._submit([*module, *words], environment, shlex.join(command))

    def state(self, job: str) -> JobState:
        """State of a job.

        Raises:
            NotFoundError: there is no such job.
        """
        with self._errors(job):
            return _state(self._client.get_job_info(job))

    def states(self) -> list[JobState]:
        """All submitted jobs but checks of paths, the newest first."""
        with self._errors():
            found = [job for job in self._states() if job.command != _CHECK]
        return sorted(found, key=lambda job: -(job.began_s or 0))

    def stop(self, job: str) -> None:
        """Ask a job to stop with SIGTERM; Ray kills it if it does not end within some seconds."""
        with self._errors(job):
            self._client.stop_job(job)

    def log(self, job: str) -> str:
        """The log of a job so far."""
        with self._errors(job):
            return str(self._client.get_job_logs(job))

    def follow(self, job: str, show: Callable[[str], None]) -> JobState:
        """Pass the log of a job to `show` until the job ends; return its final state."""
        from aiohttp import ClientError

        shown = 0

        async def stream() -> None:
            nonlocal shown
            async for text in self._client.tail_job_logs(job):
                show(text)
                shown += len(text)

        # Ray's client cannot open a WebSocket through a proxy.
        if self._proxy is None:
            # An interrupted stream is not a failure of the job: the rest of the log is polled below.
            with suppress(ClientError, OSError, RuntimeError):
                asyncio.run(stream())
        while True:
            state = self.state(job)
            log = self.log(job)
            show(log[shown:])
            shown = len(log)
            if state.is_over:
                return state
            time.sleep(_POLL_S)

    def _submit(self, words: list[str], runtime_env: dict[str, object], command: str) -> str:
        """Submit; retry while the agents of a cluster that has just started are not ready."""
        entrypoint = _ENTRYPOINT.format(python=shlex.quote(sys.executable), command=shlex.join(words))
        deadline = time.monotonic() + _AGENT_WAIT_S
        while True:
            try:
                metadata = {"gtvray.command": command}
                return str(self._client.submit_job(entrypoint=entrypoint, metadata=metadata, runtime_env=runtime_env))
            except RuntimeError as error:
                if "No available agent" not in str(error) or time.monotonic() > deadline:
                    raise
            time.sleep(_POLL_S)

    def _states(self) -> list[JobState]:
        return [_state(job) for job in self._client.list_jobs() if job.submission_id]

    def _remove_checks(self) -> None:
        """Remove the records of checks of paths that ended some time ago."""
        for job in self._states():
            if job.command == _CHECK and job.is_over and time.time() - (job.ended_s or 0) > _CHECK_KEPT_S:
                # Another command may have removed it.
                with suppress(RuntimeError):
                    self._client.delete_job(job.job)

    def _require_paths(self, needed: Needed, runtime_env: dict[str, object], notify: Callable[[str], None]) -> None:
        """Refuse a command if a node lacks one of its paths; asked by a job of its own."""
        if not (needed.read or needed.written):
            return
        self._remove_checks()
        job = self._submit([MODULE, needed.as_json()], runtime_env, _CHECK)
        is_over = False
        try:
            looked, is_over = self._look(job, notify)
        finally:
            if not is_over:
                with suppress(RuntimeError):
                    self._client.stop_job(job)
        if looked.lacking:
            raise InputError(
                "the cluster lacks a path of the command",
                where=self._address,
                expected="the same paths on the cluster as in the command",
                found="; ".join(looked.lacking),
                do="put data and results on storage that every node has at the same path; for a workspace create its "
                "parent folder",
            )
        if looked.unchecked:
            notify(f"warning: the paths of the command were not checked on {'; '.join(looked.unchecked)}")

    def _look(self, job: str, notify: Callable[[str], None]) -> tuple[Looked, bool]:
        """Wait for a check of paths; return its result, or the reason that there is none, and whether it has ended."""
        began, notified = time.monotonic(), False
        while not (state := self.state(job)).is_over and (waited_s := time.monotonic() - began) < _CHECK_S:
            if not notified and waited_s > _PATIENCE_S:
                notify(f"waiting for the cluster to check the paths of the command, at most {_CHECK_S:g} s")
                notified = True
            time.sleep(_CHECK_POLL_S)
        log = self.log(job)
        looked = read_result(log)
        if looked is not None:
            return looked, state.is_over
        if state.is_over:
            lines = [line.strip() for line in log.splitlines() if line.strip()]
            why = f"ended as {state.status} without a result" + (f": {lines[-1]}" if lines else "")
        else:
            why = f"is {state.status} after {_CHECK_S:g} s"
        return Looked((), (f"the cluster: the job that checks them {why}",)), state.is_over

    def _require_same_ray(self) -> None:
        import ray

        # The public `get_version` returns the version of the API, which hardly ever changes.
        theirs = self._client._do_request("GET", "/api/version").json().get("ray_version")
        if theirs != ray.__version__:
            raise InputError(
                "the cluster runs another version of Ray",
                where=self._address,
                expected=f"Ray {ray.__version__}, as here",
                found=f"Ray {theirs}",
                do=f"submit from an environment with ray=={theirs}, or start the cluster with this one",
            )

    @contextmanager
    def _errors(self, job: str | None = None) -> Iterator[None]:
        from ray.exceptions import AuthenticationError

        try:
            yield
        except AuthenticationError as error:
            raise AuthError("the Ray cluster requires a token", where=self._address, do=TOKEN_ADVICE) from error
        except (OSError, RuntimeError) as error:
            found = first_line(error)
            if job is not None and ("404" in found or "does not exist" in str(error)):
                raise NotFoundError(
                    "no such job", where=self._address, found=job, do="see `gtvray submit list`"
                ) from error
            proxy = self._proxy
            raise ResourceError(
                "cannot reach the job API of the Ray cluster",
                where=f"{self._address}, through the proxy {without_credentials(proxy)}" if proxy else self._address,
                found=found,
                do="start a cluster with `ray start --head`, or correct --address"
                + (", or add its host to NO_PROXY" if proxy else ""),
            ) from error


def _runtime_env(folder: Path | None) -> dict[str, object]:
    from gtvray import __version__

    # Results would otherwise be written to the job's working directory, which Ray removes.
    workspace = absolute(os.environ.get(WORKSPACE_VARIABLE) or "gtvray-runs")
    variables = {WORKSPACE_VARIABLE: workspace, VERSION_VARIABLE: __version__, **failpoint_variables()}
    variables |= {name: os.environ[name] for name in _FORWARDED if os.environ.get(name)}
    return {"env_vars": variables, **({"working_dir": str(folder)} if folder is not None else {})}


def _state(details: object) -> JobState:
    job = details.submission_id, details.status.value  # type: ignore[attr-defined]
    metadata = getattr(details, "metadata", None) or {}
    began, ended = (getattr(details, name, None) for name in ("start_time", "end_time"))
    return JobState(
        *job,
        metadata.get("gtvray.command") or details.entrypoint,  # type: ignore[attr-defined]
        began / 1000 if began else None,
        ended / 1000 if ended else None,
        getattr(details, "message", None) or "",
    )


@contextmanager
def _without_ray_addresses() -> Iterator[None]:
    """Hide Ray's address variables, which its client prefers to the address that it is given."""
    hidden = {name: os.environ.pop(name) for name in _RAY_ADDRESSES if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(hidden)
