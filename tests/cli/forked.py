"""Commands in processes forked from one that has imported the libraries, which takes 9 s of CPU time in each command.

`Forks` starts that process and asks it for commands. A forked command has the arguments, environment, streams, process
group and exit code that `python -m gtvray` would have in a process of its own; what it does not repeat is imports.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import json
import os
import runpy
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from gtvray import failpoints
from gtvray.runtime import use_token
from gtvray.runtime.environment import prepare_environment

# What sweeps, trainings, promotions and endpoints import.
_PRELOADED = (
    "torch._dynamo",
    "ray.serve",
    "ray.train.v2.api.data_parallel_trainer",
    "ray.tune",
    "mlflow.tracking._tracking_service.client",
    "mlflow.store.tracking.sqlalchemy_store",
    "mlflow.store.model_registry.sqlalchemy_store",
    "mlflow.store.db.utils",
    "matplotlib.backends.backend_agg",
    "matplotlib.pyplot",
    "scipy.ndimage",
    "scipy.stats",
    "gtvray.cli.main",
    "gtvray.models.losses",
    "gtvray.models.unet",
    "gtvray.promotion",
    "gtvray.reports.trials",
    "gtvray.training.memory",
    "gtvray.tuning.folds",
    "gtvray.tuning.job",
)
# Read when a command runs; others are read when libraries are imported.
_OWN = ("GTVRAY_", "PYTEST_CURRENT_TEST")


class Forks:
    """The process from which commands are forked, and its environment."""

    def __init__(self) -> None:
        self._environment = _imported(os.environ)
        self._requests, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with theirs:
            self._server = subprocess.Popen(
                [sys.executable, "-m", __name__, str(theirs.fileno())],
                cwd=Path(__file__).parents[2],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )

    def suits(self, environment: Mapping[str, str]) -> bool:
        """Whether libraries would be imported as they were."""
        return _imported(environment) == self._environment

    def start(self, arguments: list[str], environment: Mapping[str, str]) -> Forked:
        """Fork a command."""
        streams = [os.pipe() for _ in range(3)]
        request = json.dumps([arguments, dict(environment), os.getcwd()]).encode()
        try:
            socket.send_fds(self._requests, [struct.pack("!I", len(request))], [write for _, write in streams])
            self._requests.sendall(request)
        finally:
            for _, write in streams:
                os.close(write)
        return Forked(*(read for read, _ in streams))


class Forked:
    """A forked command, with the part of the interface of `subprocess.Popen` that tests use."""

    def __init__(self, stdout: int, stderr: int, status: int) -> None:
        self.stdout: IO[str] = open(stdout, encoding="utf-8", errors="replace")  # noqa: SIM115
        self.stderr: IO[str] = open(stderr, encoding="utf-8", errors="replace")  # noqa: SIM115
        self._status = open(status, "rb", buffering=0)  # noqa: SIM115
        (self.pid,) = struct.unpack("!i", self._status.read(4))
        self.returncode: int | None = None
        os.set_blocking(status, False)

    def poll(self) -> int | None:
        """Return the exit code, or the negative number of the signal that ended the command; None while it runs."""
        if self.returncode is None and (found := self._status.read(4)):
            (self.returncode,) = struct.unpack("!i", found)
            self._status.close()
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the exit code.

        Raises:
            TimeoutExpired: the command did not exit within that many seconds.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while (code := self.poll()) is None:
            if deadline is not None and time.monotonic() > deadline:
                raise subprocess.TimeoutExpired("gtvray", timeout or 0)
            time.sleep(0.02)
        return code

    def kill(self) -> None:
        """Kill the command."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)


def _imported(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if not name.startswith(_OWN) and name != "RAY_ADDRESS"}


def _serve(requests: socket.socket) -> None:
    """Fork a command for each request, until the other end is closed."""
    # Ray reads how clusters authenticate when it is imported, as in `gtvray.cli.main`.
    use_token()
    for name in _PRELOADED:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()
    # Processes that report exit codes are children that nobody waits for.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        head, streams, _, _ = socket.recv_fds(requests, 4, 3)
        if not head:
            return
        request = b""
        (length,) = struct.unpack("!I", head)
        while len(request) < length:
            request += requests.recv(length - len(request))
        if os.fork() == 0:
            requests.close()
            _report(streams, *json.loads(request))
            return
        for stream in streams:
            os.close(stream)


def _report(streams: list[int], arguments: list[str], environment: dict[str, str], folder: str) -> None:
    """Fork the command, and write its id and exit code to the third stream."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    stdout, stderr, status = streams
    ready, begun = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.setsid()
        os.dup2(stdout, 1)
        os.dup2(stderr, 2)
        for stream in (stdout, stderr, status, ready, begun):
            os.close(stream)
        _run(arguments, environment, folder)
        return
    for stream in (stdout, stderr, begun):
        os.close(stream)
    # Its process group must exist before a test can send a signal to it.
    os.read(ready, 1)
    os.write(status, struct.pack("!i", pid))
    _, ended = os.waitpid(pid, 0)
    os.write(status, struct.pack("!i", os.waitstatus_to_exitcode(ended)))
    os._exit(0)


def _run(arguments: list[str], environment: dict[str, str], folder: str) -> None:
    os.chdir(folder)
    sys.path[0] = folder
    os.environ.clear()
    os.environ.update(environment)
    # As when gtvray and its failpoints are imported.
    prepare_environment()
    failpoints.arm(environment.get(failpoints.VARIABLE, ""))
    sys.argv = ["gtvray", *arguments]
    code: object = 1
    try:
        runpy.run_module("gtvray", run_name="__main__", alter_sys=True)
    except SystemExit as left:
        code = left.code
    finally:
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        # Freeing all imported modules would take seconds.
        os._exit(code if isinstance(code, int) else 0)


def _main(arguments: list[Any]) -> None:
    with socket.socket(fileno=int(arguments[0])) as requests:
        _serve(requests)


if __name__ == "__main__":
    _main(sys.argv[1:])
