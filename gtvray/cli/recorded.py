"""Output of a training or sweep about its record in MLflow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gtvray.tracking import Refused


def tracking_found(delivered: bool, refused: Sequence[Refused]) -> dict[str, Any]:
    """Return the MLflow entries of a command's JSON object."""
    return {
        "mlflow_has_everything": delivered and not refused,
        "mlflow_refused": [asdict(each) for each in refused],
    }


def tracking_lines(delivered: bool, refused: Sequence[Refused], resume: str) -> list[str]:
    """Return the lines about MLflow for a command's text output; none if MLflow has everything.

    Args:
        delivered: whether nothing waits in the queue.
        refused: what MLflow refused permanently.
        resume: the command that sends everything again.
    """
    lines = [] if delivered else [f"MLflow was unreachable; send the remaining entries with: {resume}"]
    if refused:
        lines += [*map(str, refused), f"correct the cause, then send them again with: {resume}"]
    return lines
