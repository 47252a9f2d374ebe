"""The command line as people run it: a process of its own, its output, and whatever it leaves running."""

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
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from gtvray.cli import main

_MARK = "GTVRAY_TEST_RUN"
# Two small trials on a coarse grid: seconds of training, and a model that has learned next to nothing.
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
# The least that passes through every stage.
ONE_TRIAL_SWEEP = TINY_SWEEP.replace("trials: 2", "trials: 1").replace("epochs: 2", "epochs: 1")
# After kill -9 Ray's own agents look for the control store for a minute before they end too.
KILLED_GONE_S = 80.0
# Lets such a model through.
OPEN_GATE = ("-s", "promotion.min_difference_low=-1")


@dataclass(frozen=True)
class Finished:
    """A run that has ended."""

    code: int
    stdout: str
    stderr: str

    def json(self) -> Any:
        """What `--json` printed: one line, one object."""
        assert self.stdout.count("\n") == 1, self
        return json.loads(self.stdout)

    def error(self, code: int) -> str:
        """The error a run ended with, held against what errors must be."""
        assert self.code == code, self
        assert "Traceback" not in self.stdout + self.stderr, self
        _, mark, error = ("\n" + self.stderr).partition("\nerror: ")
        assert mark, self
        assert len(error.splitlines()) <= 5, self
        return error


class Running:
    """A run that goes on."""

    def __init__(self, *arguments: object, **environment: str) -> None:
        self._mark = f"{_MARK}={uuid.uuid4().hex}"
        self._process = subprocess.Popen(
            [sys.executable, "-m", "gtvray", *map(str, arguments)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**_environment(), **environment, _MARK: self._mark.partition("=")[2]},
            # A process group of its own, as a shell gives it: Ctrl-C goes to all of it.
            start_new_session=True,
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
        """All that a stream holds, once it holds a text."""
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
        """Wait for the end."""
        try:
            code = self._process.wait(within_s)
        finally:
            self._process.kill()
            self._process.wait()
        for reader in self._readers:
            # A stray process may hold the pipe open; the test is to say so, not to hang.
            reader.join(5)
        return Finished(code, self._said["stdout"], self._said["stderr"])

    def strays(self, within_s: float = 30) -> list[str]:
        """Command lines of what it started and still runs, after some time to end."""
        deadline = time.monotonic() + within_s
        while (found := self._descendants()) and time.monotonic() < deadline:
            time.sleep(0.2)
        return list(found.values())

    def kill_all(self) -> None:
        """Kill the process and all that it started, all at once, as a power failure does."""
        while found := self._descendants():
            for number in (signal.SIGSTOP, signal.SIGKILL):
                for pid in found:
                    with suppress(ProcessLookupError):
                        os.kill(pid, number)
            time.sleep(0.1)
        self._process.wait()

    def _descendants(self) -> dict[int, str]:
        """Command line of each process that runs, by its id."""
        found = {}
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                ours = self._mark.encode() in (entry / "environ").read_bytes().split(b"\0")
                # The state of a process that has ended and waits for its parent is not ours to judge.
                gone = (entry / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
                if ours and not gone:
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
    """Run a command to its end; nothing it started outlives it."""
    running = Running(*arguments, **environment)
    finished = running.end(within_s)
    assert running.strays() == []
    return finished


def call(*arguments: object) -> Finished:
    """Run a command in this process, without the seconds that a new one takes to import its libraries.

    For commands that print or refuse before Ray or a network is loaded.
    """
    out, err, before = io.StringIO(), io.StringIO(), signal.getsignal(signal.SIGTERM)
    with (
        # As in a process of its own, where a library's warning is no error.
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
    """What an interrupted writer left in a workspace."""
    return [*workspace.rglob(".partial-*"), *workspace.rglob(".retired-*")]


def _environment() -> dict[str, str]:
    # The session's cluster is not to be found by accident: tests that use it name it.
    return {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
