"""Long-running programs on this machine that are started by one command and stopped by another.

A program is identified by process id and start time, since process ids are reused. Its descendants, including orphans,
have a random mark in their environment, so that no other process is ever stopped.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_MARK = "GTVRAY_SERVICE"
_POLL_S = 0.2
_PROC = Path("/proc")
# Fields of /proc/PID/stat behind the name of the program: state, parent and start time.
_STATE, _PARENT, _START = 0, 1, 19


@dataclass(frozen=True)
class Process:
    """A process.

    Attributes:
        pid: process id.
        since: start time in clock ticks since boot.
    """

    pid: int
    since: int

    @property
    def is_alive(self) -> bool:
        """Whether the process is running; a zombie is not."""
        found = _stat(self.pid)
        return found is not None and int(found[_START]) == self.since and found[_STATE] != "Z"

    def send(self, number: signal.Signals) -> None:
        """Send a signal if the process is running."""
        if self.is_alive:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)


def start_service(command: Sequence[str], environment: Mapping[str, str], log: Path, mark: str) -> Process:
    """Start a program in a session of its own, so that Ctrl-C here does not reach it.

    Args:
        command: path of the program, and its arguments.
        environment: complete environment of the program.
        log: file to which its output is appended.
        mark: unique secret by which `stop_service` finds the program's processes.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    # Unlike `subprocess`, without an object that must outlive the program.
    pid = os.posix_spawn(
        command[0],
        list(command),
        {**environment, _MARK: mark},
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, str(log), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ],
        setsid=True,
    )
    found = _stat(pid)
    return Process(pid, int(found[_START]) if found is not None else 0)


def stop_service(process: Process, mark: str, within_s: float, kill_s: float = 10.0) -> int:
    """Stop a program and all its descendants with SIGTERM, then SIGKILL; return how many processes had to be killed.

    Args:
        process: the program.
        mark: mark with which it was started.
        within_s: time in seconds for the program to end after SIGTERM.
        kill_s: time in seconds for its remaining processes to end after SIGTERM, before they are killed.
    """
    # Listed before it ends: afterwards its children can no longer be found through it.
    family = set(_family(process)) | set(_marked(mark))
    process.send(signal.SIGTERM)
    _wait([process], within_s)
    left = {each for each in family | set(_marked(mark)) if each.is_alive}
    for each in left:
        each.send(signal.SIGTERM)
    _wait(left, kill_s)
    killed = [each for each in left if each.is_alive]
    for each in killed:
        each.send(signal.SIGKILL)
    _wait(killed, kill_s)
    return len(killed)


def _wait(processes: Sequence[Process] | set[Process], within_s: float) -> None:
    deadline = time.monotonic() + within_s
    while any(each.is_alive for each in processes) and time.monotonic() < deadline:
        for each in processes:
            # Reap it if it is a child of this process.
            with suppress(ChildProcessError):
                os.waitpid(each.pid, os.WNOHANG)
        time.sleep(_POLL_S)


def _family(process: Process) -> Iterator[Process]:
    children: dict[int, list[Process]] = {}
    for found, fields in _processes():
        children.setdefault(int(fields[_PARENT]), []).append(found)
    waiting = [process] if process.is_alive else []
    while waiting:
        yield (each := waiting.pop())
        waiting += children.get(each.pid, [])


def _marked(mark: str) -> Iterator[Process]:
    wanted = f"{_MARK}={mark}".encode()
    for found, _ in _processes():
        with suppress(OSError):
            if wanted in (_PROC / str(found.pid) / "environ").read_bytes().split(b"\0"):
                yield found


def _processes() -> Iterator[tuple[Process, list[str]]]:
    for entry in _PROC.iterdir():
        if entry.name.isdecimal() and (fields := _stat(int(entry.name))) is not None:
            yield Process(int(entry.name), int(fields[_START])), fields


def _stat(pid: int) -> list[str] | None:
    try:
        return (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
