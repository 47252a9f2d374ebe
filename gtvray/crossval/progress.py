"""What is known of the folds of a training: kept on disk, sent to MLflow, shown."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from gtvray.config import flatten
from gtvray.experiments.folds import Fold
from gtvray.failpoints import failpoint
from gtvray.io import append_json_line, read_json_lines
from gtvray.tracking import RunRecorder
from gtvray.training import EpochReport

_REPORTS = "reports.jsonl"
_FIGURES = ("train_loss", "selection_dsc", "best_dsc", "lr", "patches_per_s", "data_wait_share", "seconds", "retries")
# The time left follows the latest epochs: folds come and go beside one another.
_RECENT = 5

State = Literal["waiting", "training", "trained", "failed"]


@dataclass(frozen=True)
class FoldStatus:
    """A fold at a moment; figures are of its last epoch.

    Attributes:
        fold: its name.
        state: where it is.
        epoch, epochs: done, and in all.
        loss, dsc, best_dsc: training loss, and selection DSC, on the prepared grid.
        patches_per_s, data_wait_share: as in `EpochReport`.
        left_s: seconds of training left, if they can be told.
        note: what went wrong, and what was done about it.
    """

    fold: str
    state: State
    epoch: int
    epochs: int
    loss: float | None
    dsc: float | None
    best_dsc: float | None
    patches_per_s: float | None
    data_wait_share: float | None
    left_s: float | None
    note: str


class Board:
    """Follows folds; what it has been told before, in an earlier process too, is not told again.

    Args:
        folds: of this training.
        recorder: of its run.
        tags: of every fold's run.
        report: given the status of all folds after every change.
    """

    def __init__(
        self,
        folds: Sequence[Fold],
        recorder: RunRecorder,
        tags: dict[str, str],
        report: Callable[[list[FoldStatus]], None],
    ) -> None:
        self._folds = {fold.name: fold for fold in folds}
        self._recorder, self._report = recorder, report
        self._reports = {fold.name: read_json_lines(fold.folder / _REPORTS) for fold in folds}
        self._states: dict[str, State] = {fold.name: "waiting" for fold in folds}
        self._notes = dict.fromkeys(self._folds, "")
        self.failures: dict[str, str] = {}
        for fold in folds:
            params = flatten(fold.config) | {"train_cases": len(fold.train), "validation_cases": len(fold.validation)}
            recorder.start(fold.name, params, {**tags, "mlflow.runName": fold.name, "gtvray.fold": fold.name})
            # A crash may have come between disk and MLflow: of the same moment, it is the same figure.
            for entry in self._reports[fold.name][-1:]:
                self._send(fold, entry)

    def last(self, fold: Fold) -> int:
        """The last epoch of a fold that is known."""
        reports = self._reports[fold.name]
        return int(reports[-1]["epoch"]) if reports else 0

    def epoch(self, fold: Fold, report: EpochReport) -> None:
        """Keep an epoch, send it and show it."""
        entry = {**report.as_dict(), "at_ms": int(time.time() * 1000)}
        append_json_line(fold.folder / _REPORTS, entry)
        self._reports[fold.name].append(entry)
        self._send(fold, entry)
        failpoint("tuning.after_report")
        self._change(fold, "training", report.notes)

    def lost(self, fold: Fold, reason: str) -> None:
        """Show that a fold's process died."""
        self._change(fold, "training", f"its process died and another goes on: {reason}")

    def ended(self, fold: Fold, reason: str | None) -> None:
        """Show that a fold is trained, or failed; the run of one that failed ends."""
        if reason is not None:
            self.failures[fold.name] = reason
            self._recorder.finish(fold.name, "FAILED")
        self._change(fold, "trained" if reason is None else "failed", reason or self._notes[fold.name])

    def trained(self) -> list[Fold]:
        """The folds that came to their end."""
        return [fold for name, fold in self._folds.items() if self._states[name] == "trained"]

    def best(self, fold: Fold) -> tuple[Path, dict[str, Any]]:
        """The best checkpoint of a fold, and its last report."""
        last = self._reports[fold.name][-1]
        # By its name: the workspace may have been moved since.
        return fold.folder / Path(last["best_checkpoint"]).name, last

    def statuses(self) -> list[FoldStatus]:
        """All folds at this moment."""
        return [self._status(fold) for fold in self._folds.values()]

    def _send(self, fold: Fold, entry: dict[str, Any]) -> None:
        figures = {name: float(entry[name]) for name in _FIGURES}
        self._recorder.log(fold.name, figures, entry["epoch"], entry["at_ms"])

    def _change(self, fold: Fold, state: State, note: str) -> None:
        self._states[fold.name] = state
        self._notes[fold.name] = note or self._notes[fold.name]
        self._report(self.statuses())

    def _status(self, fold: Fold) -> FoldStatus:
        reports = self._reports[fold.name]
        last: dict[str, Any] = reports[-1] if reports else {}
        epoch, epochs = int(last.get("epoch", 0)), int(last.get("epochs", fold.config.training.epochs))
        recent = [float(entry["seconds"]) for entry in reports[-_RECENT:]]
        return FoldStatus(
            fold=fold.name,
            state=self._states[fold.name],
            epoch=epoch,
            epochs=epochs,
            loss=last.get("train_loss"),
            dsc=last.get("selection_dsc"),
            best_dsc=last.get("best_dsc"),
            patches_per_s=last.get("patches_per_s"),
            data_wait_share=last.get("data_wait_share"),
            left_s=(epochs - epoch) * sum(recent) / len(recent) if recent else None,
            note=self._notes[fold.name],
        )
