"""Entries of a metric queue that MLflow will never accept: set aside in a file beside the queue, with the reasons."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gtvray.io import append_json_line, read_json_lines
from gtvray.tracking.faults import is_permanent, reason_of

_SUFFIX = ".rejected.jsonl"


@dataclass(frozen=True)
class Rejection:
    """An entry that MLflow refused permanently.

    Attributes:
        entry: the entry, or the part of it that was refused.
        reason: why, in one line.
    """

    entry: dict[str, Any]
    reason: str

    @property
    def trial(self) -> str | None:
        """Id of the trial; None for the parent run."""
        return self.entry.get("trial")

    def as_dict(self) -> dict[str, Any]:
        """Return the line of the file."""
        return {"reason": self.reason, "entry": self.entry}


@dataclass(frozen=True)
class Refused:
    """Entries of one run that MLflow refused for one reason.

    Attributes:
        trial: id of the trial; None for the parent run.
        entries: their number.
        reason: why, in one line.
    """

    trial: str | None
    entries: int
    reason: str

    def __str__(self) -> str:
        run = "the parent run" if self.trial is None else f"trial {self.trial}"
        count = f"{self.entries} {'entry' if self.entries == 1 else 'entries'}"
        return f"MLflow refused {count} of {run}: {self.reason}"


class RejectedFile:
    """The file of rejected entries of one queue.

    Args:
        queue: the queue's file.
    """

    def __init__(self, queue: Path) -> None:
        self._path = queue.with_suffix(_SUFFIX)
        self._known = {json.dumps(line) for line in read_json_lines(self._path)}

    def __bool__(self) -> bool:
        return bool(self._known)

    def add(self, rejections: Iterable[Rejection]) -> None:
        """Add entries; one that is in the file is not repeated, since a crash can cause a second delivery."""
        for rejection in rejections:
            line = rejection.as_dict()
            if json.dumps(line) not in self._known:
                append_json_line(self._path, line)
                self._known.add(json.dumps(line))

    def clear(self) -> None:
        """Remove the file."""
        self._path.unlink(missing_ok=True)
        self._known.clear()


def send_each(entries: Iterable[dict[str, Any]], send: Callable[[dict[str, Any]], None]) -> list[Rejection]:
    """Send entries one by one, and return those that MLflow refuses permanently; other faults are raised."""
    refused = []
    for entry in entries:
        try:
            send(entry)
        except Exception as error:
            if not is_permanent(error):
                raise
            refused.append(Rejection(entry, reason_of(error)))
    return refused


def read_rejections(queue: Path) -> list[Rejection]:
    """Read the rejected entries of the queue with this file."""
    return [Rejection(line["entry"], line["reason"]) for line in read_json_lines(queue.with_suffix(_SUFFIX))]


def summarise_rejections(rejections: Iterable[Rejection]) -> list[Refused]:
    """Count rejected entries by run and reason, in order of their first entry."""
    counts = Counter((rejection.trial, rejection.reason) for rejection in rejections)
    return [Refused(trial, count, reason) for (trial, reason), count in counts.items()]
