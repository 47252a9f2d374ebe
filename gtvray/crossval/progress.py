"""Progress of the folds of a training: stored on disk, sent to MLflow, and displayed."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from gtvray.config import flatten
from gtvray.experiments.fold_plan import Fold
from gtvray.failpoints import failpoint
from gtvray.io import append_json_line, read_json_lines
from gtvray.tracking import RunRecorder
from gtvray.training import EPOCH_METRICS, EpochReport

_REPORTS = "reports.jsonl"
# The remaining time is estimated from the latest epochs, since the number of folds that share the machine varies.
_RECENT = 5

State = Literal["waiting", "training", "trained", "failed"]


@dataclass(frozen=True)
class FoldStatus:
    """Status of a fold; metrics are those of its last epoch.

    Attributes:
        fold: name of the fold.
        state: current state.
        epoch, epochs: completed epochs, and all epochs.
        loss, dsc, best_dsc: training loss, and selection DSC on the prepared grid.
        patches_per_s, data_wait_share: as in `EpochReport`.
        left_s: estimated seconds of training left; None before the first epoch.
        note: latest problem and how it was handled.
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


class FoldProgress:
    """Records the epochs of folds, and continues the stored reports of an earlier process.

    Args:
        folds: folds of this training.
        recorder: records the MLflow runs.
        tags: tags of the run of every fold.
        report: called with the status of all folds after every change.
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
            # The last report may have been stored but not queued before a crash; MLflow stores a repeated metric once.
            for entry in self._reports[fold.name][-1:]:
                self._send(fold, entry)

    def last(self, fold: Fold) -> int:
        """Return the last recorded epoch of a fold; 0 if there is none."""
        reports = self._reports[fold.name]
        return int(reports[-1]["epoch"]) if reports else 0

    def epoch(self, fold: Fold, report: EpochReport) -> None:
        """Store, send and display an epoch."""
        entry = {**report.as_dict(), "at_ms": int(time.time() * 1000)}
        append_json_line(fold.folder / _REPORTS, entry)
        self._reports[fold.name].append(entry)
        self._send(fold, entry)
        failpoint("tuning.after_report")
        self._change(fold, "training", report.notes)

    def lost(self, fold: Fold, reason: str) -> None:
        """Display that the process of a fold was replaced."""
        self._change(fold, "training", f"its process died and was replaced: {reason}")

    def ended(self, fold: Fold, reason: str | None) -> None:
        """Display that a fold has ended; the run of a failed fold ends too."""
        if reason is not None:
            self.failures[fold.name] = reason
            self._recorder.finish(fold.name, "FAILED")
        self._change(fold, "trained" if reason is None else "failed", reason or self._notes[fold.name])

    def trained(self) -> list[Fold]:
        """Return the folds that were trained completely."""
        return [fold for name, fold in self._folds.items() if self._states[name] == "trained"]

    def best(self, fold: Fold) -> tuple[Path, dict[str, Any]]:
        """Return the best checkpoint of a fold, and its last report."""
        last = self._reports[fold.name][-1]
        # By name, because the workspace may have been moved.
        return fold.folder / Path(last["best_checkpoint"]).name, last

    def statuses(self) -> list[FoldStatus]:
        """Return the status of every fold."""
        return [self._status(fold) for fold in self._folds.values()]

    def _send(self, fold: Fold, entry: dict[str, Any]) -> None:
        metrics = {name: float(entry[name]) for name in EPOCH_METRICS}
        self._recorder.log(fold.name, metrics, entry["epoch"], entry["at_ms"])

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
