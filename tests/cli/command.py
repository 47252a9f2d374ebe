"""Run commands in a process of their own, and examine their output and the processes that they leave running."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
import warnings
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from gtvray.cli import main

from .forked import Forked, Forks

_MARK = "GTVRAY_TEST_RUN"
# Two small trials on a coarse grid: seconds of training, and a model that is hardly trained.
TINY_SWEEP = """
trials: 2
searcher: random
scheduler: {kind: none}
base:
  preprocessing.spacing_mm: [8.0, 8.0, 8.0]
  network.features: [8, 16, 16]
  training.patch_ijk: [24, 24, 24]
  training.epochs: 2
  training.steps_per_epoch: 2
  training.precision: fp32
space:
  optimizer.lr: {low: 1.0e-3, high: 6.0e-3, log: true}
"""
# The smallest sweep that goes through every stage.
ONE_TRIAL_SWEEP = TINY_SWEEP.replace("trials: 2", "trials: 1").replace("epochs: 2", "epochs: 1")
# After SIGKILL, Ray's agents try to reach the GCS for a minute before they exit.
KILLED_GONE_S = 80.0
# Makes the gate accept such a model.
OPEN_GATE = ("-s", "promotion.min_difference_low=-1")


@dataclass(frozen=True)
class Finished:
    """The result of a command that has exited."""

    code: int
    stdout: str
    stderr: str

    def json(self) -> Any:
        """Return the object that `--json` printed; it must be the only line of stdout."""
        assert self.stdout.count("\n") == 1, self
        return json.loads(self.stdout)

    def error(self, code: int) -> str:
        """Return the error message; check the exit code and the format of the error."""
        assert self.code == code, self
        assert "Traceback" not in self.stdout + self.stderr, self
        _, mark, error = ("\n" + self.stderr).partition("\nerror: ")
        assert mark, self
        assert len(error.splitlines()) <= 5, self
        return error


class Running:
    """A running command, in a process group of its own, as a shell creates it: Ctrl-C is sent to the whole group."""

    def __init__(self, *arguments: object, **environment: str) -> None:
        self._mark = f"{_MARK}={uuid.uuid4().hex}"
        self._shared = _shared_memory()
        self._process = _start(
            [*map(str, arguments)], {**_environment(), **environment, _MARK: self._mark.partition("=")[2]}
        )
        self._said: dict[str, str] = {"stdout": "", "stderr": ""}
        self._news = threading.Condition()
        self._readers = [threading.Thread(target=self._read, args=(name,), daemon=True) for name in self._said]
        for reader in self._readers:
            reader.start()

    @property
    def pid(self) -> int:
        """Id of the process."""
        return self._process.pid

    def wait_for(self, text: str, stream: str = "stderr", within_s: float = 220) -> str:
        """Wait until a stream contains a text; return everything printed to it so far."""
        with self._news:
            if not self._news.wait_for(lambda: text in self._said[stream] or not self._alive(), within_s):
                # The next test may use the same workspace.
                self._process.kill()
            assert text in self._said[stream], self._said
            return self._said[stream]

    def interrupt(self, number: int = signal.SIGINT) -> None:
        """Send a signal: Ctrl-C to the whole group, as a terminal does, others to the process."""
        if self._process.poll() is None:
            (os.killpg if number == signal.SIGINT else os.kill)(self._process.pid, number)

    def end(self, within_s: float = 220) -> Finished:
        """Wait until the command exits, and kill it after `within_s`."""
        try:
            code = self._process.wait(within_s)
        finally:
            self._process.kill()
            self._process.wait()
        for reader in self._readers:
            # A stray process may keep the pipe open; then the test must fail and not hang.
            reader.join(5)
        return Finished(code, self._said["stdout"], self._said["stderr"])

    def strays(self, within_s: float = 30) -> list[str]:
        """Command lines of descendants that are still running after a grace period."""
        deadline = time.monotonic() + within_s
        while (found := self._descendants()) and time.monotonic() < deadline:
            time.sleep(0.2)
        return list(found.values())

    def left_files(self, temporary: Path, within_s: float = 30) -> list[str]:
        """Files in its folder for temporary files, and new ones in shared memory, after a grace period.

        Shared memory is that of the machine, where other processes may own segments for a moment. Not counted are
        torch's folder for compiled code, one per user, which all runs share, and the folder `pymp-*` with the socket of
        the fork server of Ray's dashboard, which Ray kills and which therefore cannot remove it.
        """
        deadline = time.monotonic() + within_s
        while True:
            files = [
                path
                for path in temporary.rglob("*")
                if not path.name.startswith("torchinductor_")
                and not path.relative_to(temporary).parts[0].startswith("pymp-")
            ]
            found = [*files, *(_shared_memory() - self._shared)]
            if not found or time.monotonic() >= deadline:
                break
            time.sleep(0.2)
        return sorted(map(str, found))

    def kill_all(self) -> None:
        """Kill the process and all its descendants at once, as in a power failure."""
        while found := self._descendants():
            for number in (signal.SIGSTOP, signal.SIGKILL):
                for pid in found:
                    with suppress(ProcessLookupError):
                        os.kill(pid, number)
            time.sleep(0.1)
        self._process.wait()

    def _descendants(self) -> dict[int, str]:
        """Map the ids of all running processes of the command to their command lines."""
        found = {}
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                state, _, _, session, *_ = (entry / "stat").read_text().rpartition(")")[2].split()
                # A forked process has the environment of its parent there.
                ours = int(session) == self.pid or (
                    self._mark.encode() in (entry / "environ").read_bytes().split(b"\0")
                )
                # Zombies are ignored: they have exited and wait for their parent.
                if ours and state != "Z":
                    found[int(entry.name)] = (entry / "cmdline").read_text().replace("\0", " ")
            except OSError:
                continue
        return found

    def _alive(self) -> bool:
        return self._process.poll() is None or any(reader.is_alive() for reader in self._readers)

    def _read(self, name: str) -> None:
        with getattr(self._process, name) as stream:
            for line in stream:
                with self._news:
                    self._said[name] += line
                    self._news.notify_all()
        with self._news:
            self._news.notify_all()


def run(*arguments: object, within_s: float = 220, **environment: str) -> Finished:
    """Run a command until it exits; none of its descendants may outlive it."""
    running = Running(*arguments, **environment)
    finished = running.end(within_s)
    assert running.strays() == []
    return finished


def call(*arguments: object) -> Finished:
    """Run a command in this process, which saves the seconds that a new process needs for imports.

    For commands that print or fail before Ray or a network is loaded.
    """
    out, err, before = io.StringIO(), io.StringIO(), signal.getsignal(signal.SIGTERM)
    with (
        # As in a separate process, where warnings of libraries are not errors.
        warnings.catch_warnings(action="ignore"),
        patch.object(sys, "argv", ["gtvray", *map(str, arguments)]),
        patch.dict(os.environ, _environment(), clear=True),
        redirect_stdout(out),
        redirect_stderr(err),
        pytest.raises(SystemExit) as left,
    ):
        main()
    signal.signal(signal.SIGTERM, before)
    return Finished(int(left.value.code or 0), out.getvalue(), err.getvalue())


def partial_files(workspace: Path) -> list[Path]:
    """Temporary files and folders that an interrupted writer left in a workspace."""
    return [*workspace.rglob(".partial-*"), *workspace.rglob(".retired-*")]


@cache
def _forks() -> Forks:
    return Forks()


def _start(arguments: list[str], environment: dict[str, str]) -> subprocess.Popen[str] | Forked:
    if _forks().suits(environment):
        return _forks().start(arguments, environment)
    return subprocess.Popen(
        [sys.executable, "-m", "gtvray", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
    )


def _shared_memory() -> set[Path]:
    return set(Path("/dev/shm").iterdir())


def _environment() -> dict[str, str]:
    # A command must not connect to the session's cluster by accident; tests that use it pass its address.
    return {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
