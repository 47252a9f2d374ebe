"""Failpoints: named code locations at which tests inject a fault.

`GTVRAY_FAILPOINT` holds comma-separated entries `NAME[@RANK][:COUNT]=ACTION`. In the process of that rank (default 0),
the COUNT-th time (default 1) that execution reaches NAME, ACTION happens once:

    kill    send SIGKILL to this process
    raise   raise RuntimeError
    hang    block this thread forever
    enospc  raise the OSError of a full disk
    memory  raise MemoryError
    nan     make the caller replace its value by NaN

A process that replaces a dead one counts from the beginning. With `GTVRAY_FAILPOINT_ONCE`, the path of a folder, each
entry acts once over all processes that share the folder.
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
    "training.loss": "the loss of a step has been computed; accepts `nan`",
    "training.before_report": "an epoch has ended and its checkpoint is being written; not yet reported",
    "checkpoint.write": "half of the files of a checkpoint are written, under a temporary name",
    "checkpoint.written": "a checkpoint is complete; older ones are not yet removed",
    "tuning.after_plan": "a trial is recorded; Ray Tune does not know it yet",
    "tuning.after_start": "the driver has recorded that a trial runs; no epoch of it is recorded",
    "tuning.after_exploit": "the driver has recorded that a trial takes over weights; its process has not done so",
    "tuning.after_end": "the driver has recorded the end of a trial; the searcher has not proposed the next",
    "tuning.before_result": "all trials have ended; the bundle of the best is not yet written",
    "tuning.after_export": "the bundle of the best trial is written; the sweep has no result yet",
    "tuning.after_result": "the result of a sweep is written; other checkpoints and the run in MLflow are as before",
    "tuning.after_report": "the driver has recorded an epoch of a trial; Ray Tune has not yet continued",
    "registry.uploaded": "the files of a bundle are in MLflow; no version is registered with them",
    "promotion.scored": "a candidate's look is in MLflow and the held-out cases are scored; no decision is recorded",
    "promotion.registered": "a candidate is registered with its golden cases; no decision is recorded",
    "decision.recorded": "a decision is in the log without its record; the champion has not changed",
    "promotion.recorded": "a decision is complete in the log; the champion has not changed",
    "promotion.moved": "the champion has changed; its decision is not yet marked as completed",
    "batch.before_mask": "a scan has been segmented; its mask is not yet written",
    "batch.after_mask": "the mask of a scan is written; not yet recorded",
    "jobs.durable": "the inputs of a job are on disk; the job is not yet in the table",
    "jobs.accepted": "a job is in the table; its client has no answer yet",
    "jobs.claimed": "a volume of a job is claimed; it has not been read",
    "jobs.written": "the mask of a job's volume is on disk; the volume is not yet recorded as done",
    "jobs.finished": "a job's volume is recorded as done; its input is still on disk",
    "serving.patch": "a replica is about to run a patch of a scan",
    "serving.shadow": "a replica of a shadow version is about to segment a scan that was answered",
    "tracking.before_delivery": "metrics are queued on disk; not yet sent to MLflow",
    "tracking.after_delivery": "MLflow has the metrics; the queue position is not yet advanced",
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
    """Inject the armed fault, if any.

    Args:
        name: one of `POINTS`.
        rank: rank of this process in its worker group.

    Returns:
        True if the caller must replace its value by NaN.
    """
    return bool(_armed) and _pass(name, rank)


def arm(text: str) -> None:
    """Replace the armed entries of this process by those of a text in the format of the variable.

    Raises:
        ConfigError: an entry is malformed, or names an unknown failpoint or action.
    """
    _armed[:] = [_parsed(entry) for entry in text.split(",") if entry.strip()]


def variables() -> dict[str, str]:
    """Return the environment variables that pass the failpoints on to processes on other machines."""
    return {name: os.environ[name] for name in (VARIABLE, ONCE_VARIABLE) if name in os.environ}


def _parsed(entry: str) -> _Armed:
    match = _ENTRY.fullmatch(entry.strip())
    if match is None or match["action"] not in _ACTIONS or match["name"] not in POINTS:
        raise ConfigError(
            "invalid failpoint",
            where=VARIABLE,
            expected=f"NAME[@RANK][:COUNT]=ACTION with ACTION of {', '.join(_ACTIONS)}; NAME of {', '.join(POINTS)}",
            found=entry,
        )
    return _Armed(entry.strip(), match["name"], int(match["rank"] or 0), int(match["count"] or 1), match["action"])


def _pass(name: str, rank: int) -> bool:
    assert name in POINTS, name
    replace = False
    for entry in [entry for entry in _armed if (entry.name, entry.rank) == (name, rank)]:
        entry.left -= 1
        if entry.left == 0 and _is_first(entry):
            replace |= _ACTIONS[entry.action](f"failpoint {entry.text}")
    return replace


def _is_first(entry: _Armed) -> bool:
    """Claim an entry for this process; False if another process has claimed it."""
    folder = os.environ.get(ONCE_VARIABLE)
    if not folder:
        return True
    try:
        # Written before the fault: the next process may start right after a kill.
        os.close(os.open(Path(folder) / re.sub(r"\W", "-", entry.text), os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


def _kill(text: str) -> bool:
    os.kill(os.getpid(), signal.SIGKILL)
    # The signal may be delivered while this thread still runs.
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


def _nan(_: str) -> bool:
    return True


_ACTIONS: dict[str, Callable[[str], bool]] = {
    "kill": _kill,
    "raise": _raise,
    "hang": _hang,
    "enospc": _full,
    "memory": _no_memory,
    "nan": _nan,
}
_armed: list[_Armed] = []
arm(os.environ.get(VARIABLE, ""))
