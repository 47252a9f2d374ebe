"""Ownership of the folder of a training: the latest attempt owns it, and earlier ones must not write any more.

A process that is only unreachable, such as one on a disconnected machine, is replaced while it is still running.
"""

from __future__ import annotations

import os
import socket
import uuid
from dataclasses import dataclass
from pathlib import Path

from gtvray.errors import InputError, TrainingError
from gtvray.io import read_json, write_json

_FILE = ".writer.json"


@dataclass(frozen=True)
class Attempt:
    """One run of a training in its folder.

    Attributes:
        number: counted from 1.
        key: random, since two attempts on different machines may get the same number.
    """

    number: int
    key: str


def begin_attempt(folder: Path) -> Attempt:
    """Take over a folder from all earlier attempts: no checkpoint of theirs appears or is removed from now on.

    Args:
        folder: of checkpoints; created if needed.

    Raises:
        InputError: the folder cannot be written to.
        ResourceError: the disk is full.
    """
    attempt = Attempt(_last_number(folder) + 1, uuid.uuid4().hex)
    owner = {"number": attempt.number, "attempt": attempt.key, "host": socket.gethostname(), "pid": os.getpid()}
    write_json(folder / _FILE, owner)
    return attempt


def require_current(folder: Path, attempt: Attempt) -> None:
    """Refuse to write to a folder that a later attempt has taken over.

    Raises:
        TrainingError: a later attempt has taken over the folder.
    """
    try:
        owner = read_json(folder / _FILE)
    except InputError:
        # The folder was moved or removed, which the write itself will report.
        return
    if owner["attempt"] != attempt.key:
        raise TrainingError(
            "another process continues this training",
            where=folder,
            found=f"process {owner['pid']} on {owner['host']}",
            do="wait for that process; it continues from the newest checkpoint",
        )


def names_of(folder: Path, attempt: Attempt) -> dict[str, object]:
    """Names of a training for log lines: of the sweep or training, and of the trial or fold, whose folder it is."""
    above = folder.parent
    run = above.parent if above.name == "trials" else above
    return {"run": run.name, "trial": folder.name, "attempt": attempt.number}


def _last_number(folder: Path) -> int:
    try:
        return int(read_json(folder / _FILE).get("number", 1))
    except (InputError, TypeError, ValueError, AttributeError):
        return 0
