"""What a training or sweep reports about its record in MLflow."""

from __future__ import annotations

from gtvray.cli.recorded import tracking_found, tracking_lines
from gtvray.tracking import Refused

DELETED = Refused("t0", 3, "the MLflow run was deleted; restore it: mlflow runs restore")


def test_nothing_is_printed_if_mlflow_has_everything() -> None:
    assert tracking_lines(True, [], "gtvray sweep --resume x") == []
    assert tracking_found(True, []) == {"mlflow_has_everything": True, "mlflow_refused": []}


def test_waiting_and_refused_entries_are_named_with_the_command_that_sends_them() -> None:
    lines = tracking_lines(False, [DELETED, Refused(None, 1, "no")], "gtvray sweep --resume x")
    assert lines == [
        "MLflow was unreachable; send the remaining entries with: gtvray sweep --resume x",
        f"MLflow refused 3 entries of trial t0: {DELETED.reason}",
        "MLflow refused 1 entry of the parent run: no",
        "correct the cause, then send them again with: gtvray sweep --resume x",
    ]
    assert tracking_found(True, [DELETED]) == {
        "mlflow_has_everything": False,
        "mlflow_refused": [{"trial": "t0", "entries": 3, "reason": DELETED.reason}],
    }
