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
        kind: promoted, refused or rolled_back.
        digest: the bundle decided on.
        version: its registered version, if it has one.
        previous: the version that was champion before.
        evidence: figures and reasons, plain JSON values.
        at: UTC time.
    """

    kind: Literal["promoted", "refused", "rolled_back"]
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
        moves = [decision for decision in self.decisions() if decision.kind != "refused"]
        return moves[-1] if moves else None
