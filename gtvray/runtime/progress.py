"""Interface through which long operations report progress."""

from __future__ import annotations

from typing import Protocol


class ProgressReporter(Protocol):
    """Receiver of progress reports, such as the progress display of the command line."""

    def begin(self, stage: str, detail: str) -> None:
        """Start a stage."""

    def advance(self, done: float, total: float, detail: str = "") -> None:
        """Report that `done` of `total` units of the current stage are complete."""

    def waiting(self, reason: str | None) -> None:
        """Report that the stage waits for something, and for what; None when it no longer does."""

    def note(self, text: str) -> None:
        """Report something that stays on the screen, such as the end of a trial."""


class _Silent:
    """Progress that is not shown."""

    def begin(self, stage: str, detail: str) -> None:
        """Ignore the start of a stage."""

    def advance(self, done: float, total: float, detail: str = "") -> None:
        """Ignore progress within a stage."""

    def waiting(self, reason: str | None) -> None:
        """Ignore a wait."""

    def note(self, text: str) -> None:
        """Ignore a note."""


SILENT: ProgressReporter = _Silent()
