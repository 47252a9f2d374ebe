"""Endpoints in the background, started by one command and inspected or stopped by others.

A state file in the workspace contains the address of an endpoint and the id and start time of its process. A process is
never stopped by its id alone; see `gtvray.runtime.stop_service`.
"""

from __future__ import annotations

import os
import secrets
import socket
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from gtvray.api.arguments import WORKSPACE, PathLike, as_workspace
from gtvray.config import ServingConfig
from gtvray.errors import FailureError, InputError, NotFoundError, NotReadyError, ResourceError
from gtvray.io import Workspace, read_json, read_text, write_json
from gtvray.runtime import SILENT, Process, ProgressReporter, start_service, stop_service

_PREFIX = "background-"
_POLL_S = 0.3
# Longer than the endpoint itself waits for its model, so that it reports why there is none.
_START_S = 660.0
_NOT_STARTED = Process(0, 0)


@dataclass(frozen=True)
class BackgroundEndpoint:
    """An endpoint that `start_background` has started.

    Attributes:
        url: address, as reached from this machine.
        port: port on which it listens.
        host: name of the machine on which it runs.
        process: its process.
        mark: secret in the environment of all its processes.
        started_at: UTC time, ISO 8601.
        drain_s: seconds for requests in progress to finish when it is stopped.
        log: file with its output; the previous log has the suffix `.1`.
    """

    url: str
    port: int
    host: str
    process: Process
    mark: str
    started_at: str
    drain_s: float
    log: Path

    @property
    def is_running(self) -> bool:
        """Whether its process is alive on this machine."""
        return self.host == socket.gethostname() and self.process.is_alive

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON, without the mark."""
        return {
            "url": self.url,
            "port": self.port,
            "host": self.host,
            "pid": self.process.pid,
            "started_at": self.started_at,
            "log": str(self.log),
        }

    @property
    def last_words(self) -> str:
        """Return the error with which it ended, on one line, or else the last line of its log."""
        text = read_text(self.log) if self.log.exists() else ""
        _, marked, error = f"\n{text}".rpartition("\nerror: ")
        lines = (error if marked else text).strip().splitlines()
        return "; ".join(line.strip() for line in (lines[:5] if marked else lines[-1:])) or "its log is empty"

    @property
    def request_log(self) -> Path:
        """The log of its gateway on this machine, with a line for each request."""
        from gtvray.serving.request_log import gateway_log

        return gateway_log(self.log.parent, self.port)

    def lines(self, follow: bool = False) -> Iterator[str]:
        """Yield the log and that of the requests, piece by piece.

        Args:
            follow: continue until the endpoint has ended.

        Raises:
            NotFoundError: there is no log.
        """
        if not self.log.exists():
            raise NotFoundError("this endpoint has no log", where=self.log)
        tails = [_Tail(self.log), _Tail(self.request_log)]
        while True:
            ended = not (follow and self.is_running)
            for tail in tails:
                yield from tail.read()
            if ended:
                return
            time.sleep(_POLL_S)

    def stop(self) -> int:
        """Stop the endpoint once its requests in progress have finished; return how many processes had to be killed.

        Raises:
            InputError: it runs on another machine.
        """
        if self.host != socket.gethostname():
            raise InputError(
                "the endpoint runs on another machine", where=self.host, do=f"run this command on {self.host}"
            )
        killed = stop_service(self.process, self.mark, self.drain_s)
        _state_file(self.log.parent, self.port).unlink(missing_ok=True)
        return killed


def start_background(
    arguments: Sequence[str],
    token: str,
    settings: ServingConfig,
    *,
    workspace: Workspace | PathLike = WORKSPACE,
    show: ProgressReporter = SILENT,
) -> BackgroundEndpoint:
    """Start `gtvray serve run` in the background, and wait until it is ready.

    Args:
        arguments: arguments of `gtvray serve run`, with absolute paths.
        token: bearer token that clients must send.
        settings: `serving` section that results from the arguments.
        workspace: workspace that the arguments specify.
        show: receives progress.

    Raises:
        ResourceError: an endpoint already runs in the background on this port of the workspace.
        FailureError: it did not become ready; nothing that was started is left running.
    """
    folder = as_workspace(workspace)
    state = _state_file(folder.serving, settings.port)
    with folder.lock(state):
        require_no_background(folder, settings.port)
        before = _read(state)
        if before is not None:
            # Stop the remaining processes of an endpoint that was killed.
            before.stop()
        endpoint = _new(folder, settings)
        for log in (endpoint.log, endpoint.request_log):
            if log.exists():
                log.replace(log.with_suffix(".log.1"))
        # Written before there is a process: one that is started and not yet recorded is found by the mark.
        _write(state, endpoint)
        try:
            # The token is passed where only processes of the same user can read it.
            environment: Mapping[str, str] = {**os.environ, "GTVRAY_TOKEN": token}
            command = [sys.executable, "-m", "gtvray", "serve", "run", *arguments]
            endpoint = replace(endpoint, process=start_service(command, environment, endpoint.log, endpoint.mark))
            _write(state, endpoint)
            show.begin("serve", "starting the endpoint")
            _wait_ready(endpoint)
        except BaseException:
            endpoint.stop()
            raise
    return endpoint


def background_endpoints(workspace: Workspace | PathLike = WORKSPACE) -> list[BackgroundEndpoint]:
    """Return the background endpoints of a workspace, sorted by port, including those that ended without `stop`."""
    files = as_workspace(workspace).serving.glob(f"{_PREFIX}*.json")
    found = [endpoint for file in files if (endpoint := _read(file)) is not None]
    return sorted(found, key=lambda endpoint: endpoint.port)


def require_no_background(workspace: Workspace | PathLike, port: int) -> None:
    """Refuse to start a second endpoint in the background.

    Raises:
        ResourceError: one runs on this port of the workspace.
    """
    endpoint = _read(_state_file(as_workspace(workspace).serving, port))
    if endpoint is None or (endpoint.host == socket.gethostname() and not endpoint.is_running):
        return
    raise ResourceError(
        "an endpoint already runs in the background",
        where=endpoint.url,
        found=f"process {endpoint.process.pid} on {endpoint.host} since {endpoint.started_at}",
        do=f"stop it with `gtvray serve stop --port {port}`, or choose another --port or --workspace",
    )


def find_background(workspace: Workspace | PathLike = WORKSPACE, port: int | None = None) -> BackgroundEndpoint:
    """Return the background endpoint of a workspace.

    Args:
        workspace: workspace of the endpoint.
        port: port of the endpoint; required only if there are several.

    Raises:
        NotFoundError: there is none.
        InputError: there are several.
    """
    every = background_endpoints(workspace)
    found = [endpoint for endpoint in every if port in (None, endpoint.port)]
    if len(found) == 1:
        return found[0]
    listed = ", ".join(str(endpoint.port) for endpoint in every)
    if not found:
        raise NotFoundError(
            "no endpoint was started in the background" + (f" on port {port}" if port is not None else ""),
            where=as_workspace(workspace).root,
            found=f"ports {listed}" if every else None,
            do="start one: `gtvray serve start`; an endpoint of `gtvray serve` is stopped with Ctrl-C",
        )
    raise InputError(
        "several endpoints run in the background",
        where=as_workspace(workspace).root,
        found=f"ports {listed}",
        do="name one with --port",
    )


def _new(folder: Workspace, settings: ServingConfig) -> BackgroundEndpoint:
    from gtvray.serving import endpoint_url

    return BackgroundEndpoint(
        url=endpoint_url(settings),
        port=settings.port,
        host=socket.gethostname(),
        process=_NOT_STARTED,
        mark=secrets.token_hex(16),
        started_at=datetime.now(UTC).isoformat(timespec="seconds"),
        drain_s=settings.drain_s,
        log=folder.serving / f"{_PREFIX}{settings.port}.log",
    )


def _wait_ready(endpoint: BackgroundEndpoint) -> None:
    from gtvray.serving import probe

    deadline = time.monotonic() + _START_S
    while True:
        answer = probe(endpoint.url, "/readyz") if endpoint.is_running else None
        if answer is not None and answer.is_success:
            return
        if not endpoint.is_running:
            raise FailureError(
                "the endpoint did not start",
                where=endpoint.log,
                found=endpoint.last_words,
                do="solve this problem, then start it again",
            )
        if time.monotonic() > deadline:
            raise NotReadyError(
                "the endpoint is not ready",
                where=endpoint.log,
                expected=f"within {_START_S:g} s",
                found=endpoint.last_words,
                do="see its log; the endpoint was stopped again",
            )
        time.sleep(_POLL_S)


class _Tail:
    """Reads what was added to a file since the last call, from its start if a shorter file has replaced it."""

    def __init__(self, file: Path) -> None:
        self._file, self._position = file, 0

    def read(self) -> Iterator[str]:
        """Yield the new lines; none if there is no file yet."""
        with suppress(FileNotFoundError), self._file.open("rb") as opened:
            if self._position > os.fstat(opened.fileno()).st_size:
                self._position = 0
            opened.seek(self._position)
            for line in opened:
                self._position += len(line)
                yield line.decode(errors="replace")


def _state_file(folder: Path, port: int) -> Path:
    return folder / f"{_PREFIX}{port}.json"


def _read(state: Path) -> BackgroundEndpoint | None:
    """The endpoint of a state file; None without one."""
    try:
        stored: dict[str, Any] = read_json(state)
    except NotFoundError:
        return None
    # The workspace may have been moved.
    log = state.with_suffix(".log")
    return BackgroundEndpoint(**{**stored, "process": Process(**stored["process"]), "log": log})


def _write(state: Path, endpoint: BackgroundEndpoint) -> None:
    stored = {name: value for name, value in asdict(endpoint).items() if name != "log"}
    write_json(state, stored)
