"""What a long job tells of itself; the command line shows it."""

from __future__ import annotations

from typing import Protocol


class ProgressReporter(Protocol):
    """Whoever shows progress."""

    def begin(self, stage: str, detail: str) -> None:
        """A stage begins."""

    def advance(self, done: float, total: float, detail: str = "") -> None:
        """The present stage is this far."""
