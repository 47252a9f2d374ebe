"""The decision log: every word of the gate, refusals too, with its evidence; and the lease that serialises writers."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from gtvray.io import append_json_line, read_json_lines


@dataclass(frozen=True)
class Decision:
    """One entry.

    Attributes:
        kind: promoted, refused, rolled_back, or restored after a change from outside.
        digest: the bundle decided on.
        version: its registered version, if it has one.
        previous: the version that was champion before.
        evidence: figures and reasons, plain JSON values.
        at: UTC time.
    """

    kind: Literal["promoted", "refused", "rolled_back", "restored"]
    digest: str
    version: str | None
    previous: str | None
    evidence: dict[str, Any]
    at: str = ""


class DecisionLog:
    """An append-only file of decisions.

    Args:
        path: the file; made at the first decision.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    @property
    def workspace(self) -> Path:
        """The folder of the workspace that the decisions were made in."""
        return self._path.parent

    @contextmanager
    def lease(self) -> Iterator[None]:
        """Hold the right to move the champion; others wait."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(self._path.with_suffix(".lease"), os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)

    def append(self, decision: Decision) -> Decision:
        """Write a decision down, with the time."""
        stamped = Decision(**{**asdict(decision), "at": datetime.now(UTC).isoformat(timespec="seconds")})
        append_json_line(self._path, asdict(stamped))
        return stamped

    def decisions(self) -> list[Decision]:
        """All decisions, oldest first."""
        return [Decision(**entry) for entry in read_json_lines(self._path)]

    def standing(self) -> Decision | None:
        """The decision that made the present champion."""
        moves = self._moves()
        return moves[-1] if moves else None

    def digest_of(self, version: str) -> str | None:
        """The bundle that a version was when it last was the champion; None if it never was."""
        return next((move.digest for move in reversed(self._moves()) if move.version == version), None)

    def _moves(self) -> list[Decision]:
        return [decision for decision in self.decisions() if decision.kind != "refused"]
