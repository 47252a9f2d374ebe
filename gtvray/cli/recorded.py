"""What a training or sweep reports about its record in MLflow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gtvray.tracking import Refused


def tracking_found(delivered: bool, refused: Sequence[Refused]) -> dict[str, Any]:
    """The part of a command's JSON object."""
    return {
        "mlflow_has_everything": delivered and not refused,
        "mlflow_refused": [asdict(each) for each in refused],
    }


def tracking_lines(delivered: bool, refused: Sequence[Refused], resume: str) -> list[str]:
    """The lines of a command's text; none if MLflow has everything.

    Args:
        delivered: whether nothing waits in the queue.
        refused: what MLflow refused permanently.
        resume: the command that sends everything again.
    """
    lines = [] if delivered else [f"MLflow was away; the rest goes there with {resume}"]
    if refused:
        lines += [*map(str, refused), f"sent again, once the cause is corrected, by {resume}"]
    return lines
