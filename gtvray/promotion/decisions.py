"""The log of the gate's decisions, refusals included, with their evidence; and the lease of the champion."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock

from gtvray.io import append_json_line, read_json_lines


@dataclass(frozen=True)
class Decision:
    """An entry of the log.

    Attributes:
        kind: promoted, refused, rolled_back, or restored after an external change.
        digest: digest of the bundle that was decided on.
        version: its registered version; None for a refused bundle.
        previous: the version that was champion before.
        evidence: scores, statistics and reasons as plain JSON values.
        at: UTC time, ISO 8601.
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
        path: the file; created by the first decision.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    @property
    def workspace(self) -> Path:
        """The folder of the workspace whose decisions these are."""
        return self._path.parent

    @contextmanager
    def lease(self) -> Iterator[None]:
        """Hold the exclusive right to change the champion; other processes wait."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(self._path.with_suffix(".lease"), fallback_to_soft=False):
            yield

    def append(self, decision: Decision) -> Decision:
        """Append a decision with the current time, and return it."""
        stamped = Decision(**{**asdict(decision), "at": datetime.now(UTC).isoformat(timespec="seconds")})
        append_json_line(self._path, asdict(stamped))
        return stamped

    def decisions(self) -> list[Decision]:
        """Return all decisions, oldest first."""
        return [Decision(**entry) for entry in read_json_lines(self._path)]

    def current(self) -> Decision | None:
        """Return the decision that made the current champion; None before the first promotion."""
        changes = self._changes()
        return changes[-1] if changes else None

    def digest_of(self, version: str) -> str | None:
        """Return the digest of the bundle that a version had when it last became champion; None if it never did."""
        return next((change.digest for change in reversed(self._changes()) if change.version == version), None)

    def _changes(self) -> list[Decision]:
        return [decision for decision in self.decisions() if decision.kind != "refused"]
