"""Named places where a test, or whoever doubts it, makes a process fail on purpose.

`GTVRAY_FAILPOINT` holds `NAME[@RANK][:COUNT]=ACTION`, several parted by commas: in the process of that rank (0 if not
given), the COUNT-th time (the first if not given) that the place NAME is passed, ACTION happens, once:

    kill    SIGKILL to this process
    raise   a RuntimeError
    hang    this thread stands still for ever
    enospc  the OSError of a full disk
    memory  a MemoryError
    nan     the caller spoils the figure it is about to use

A process that is started in the place of a dead one counts from the beginning. With `GTVRAY_FAILPOINT_ONCE`, a folder,
each entry acts once over all processes that share the folder.
"""

from __future__ import annotations

import errno
import os
import re
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from gtvray.errors import ConfigError

VARIABLE = "GTVRAY_FAILPOINT"
ONCE_VARIABLE = "GTVRAY_FAILPOINT_ONCE"
POINTS: dict[str, str] = {
    "training.before_step": "before an optimizer step",
    "training.loss": "when a step's loss is known; takes `nan`",
    "training.before_report": "an epoch is done, its checkpoint handed to the writer, nobody told",
    "checkpoint.write": "half of a checkpoint's files written, under a temporary name",
    "checkpoint.written": "a checkpoint is in its place, older ones not yet removed",
    "tuning.after_report": "the driver has recorded an epoch of a trial, Ray Tune has not yet gone on",
    "tracking.before_delivery": "figures are on disk, MLflow not yet asked",
    "tracking.after_delivery": "MLflow has the figures, the queue's mark not yet moved on",
}
_ENTRY = re.compile(r"(?P<name>[a-z_.]+)(@(?P<rank>\d+))?(:(?P<count>[1-9]\d*))?=(?P<action>[a-z]+)")


@dataclass
class _Armed:
    """An entry that has not acted yet."""

    text: str
    name: str
    rank: int
    left: int
    action: str


def failpoint(name: str, rank: int = 0) -> bool:
    """Pass the place `name`; nothing happens unless it is armed.

    Args:
        name: one of `POINTS`.
        rank: this process's number among those that work together.

    Returns:
        True if the caller is to spoil its figure.
    """
    return bool(_armed) and _pass(name, rank)


def arm(text: str) -> None:
    """Replace what is armed in this process by the entries of a text, as the variable holds it; empty is none.

    Raises:
        ConfigError: an entry is malformed, or names a place or an action that there is not.
    """
    _armed[:] = [_parsed(entry) for entry in text.split(",") if entry.strip()]


def variables() -> dict[str, str]:
    """What processes on other machines need in their environment to fail like this one's children would."""
    return {name: os.environ[name] for name in (VARIABLE, ONCE_VARIABLE) if name in os.environ}


def _parsed(entry: str) -> _Armed:
    match = _ENTRY.fullmatch(entry.strip())
    if match is None or match["action"] not in _ACTIONS or match["name"] not in POINTS:
        raise ConfigError(
            "not a failpoint",
            where=VARIABLE,
            expected=f"NAME[@RANK][:COUNT]=ACTION with ACTION of {', '.join(_ACTIONS)}; NAME of {', '.join(POINTS)}",
            found=entry,
        )
    return _Armed(entry.strip(), match["name"], int(match["rank"] or 0), int(match["count"] or 1), match["action"])


def _pass(name: str, rank: int) -> bool:
    assert name in POINTS, name
    spoil = False
    for entry in [entry for entry in _armed if (entry.name, entry.rank) == (name, rank)]:
        entry.left -= 1
        if entry.left == 0 and _is_first(entry):
            spoil |= _ACTIONS[entry.action](f"failpoint {entry.text}")
    return spoil


def _is_first(entry: _Armed) -> bool:
    """Whether no other process has acted on an entry; makes it so."""
    folder = os.environ.get(ONCE_VARIABLE)
    if not folder:
        return True
    try:
        # On disk before anything happens: the next process may start a moment after a kill.
        os.close(os.open(Path(folder) / re.sub(r"\W", "-", entry.text), os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


def _kill(text: str) -> bool:
    os.kill(os.getpid(), signal.SIGKILL)
    # The signal reaches one thread of the process, and another may have called.
    return _hang(text)


def _raise(text: str) -> bool:
    raise RuntimeError(text)


def _hang(_: str) -> bool:
    while True:
        threading.Event().wait(3600)


def _full(text: str) -> bool:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), text)


def _no_memory(text: str) -> bool:
    raise MemoryError(text)


def _spoil(_: str) -> bool:
    return True


_ACTIONS: dict[str, Callable[[str], bool]] = {
    "kill": _kill,
    "raise": _raise,
    "hang": _hang,
    "enospc": _full,
    "memory": _no_memory,
    "nan": _spoil,
}
_armed: list[_Armed] = []
arm(os.environ.get(VARIABLE, ""))
