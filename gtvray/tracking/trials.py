"""A sweep's own record of its trials: JSON lines in the sweep's folder, written before anything is sent to MLflow.

A line is an event of a trial:

    {"event": "start", "trial": ID, "at": TIME, "settings": {KEY: VALUE}}
    {"event": "epoch", "trial": ID, "at": TIME, "epoch": N, "metrics": {NAME: VALUE}}
    {"event": "note",  "trial": ID, "at": TIME, "text": TEXT}
    {"event": "end",   "trial": ID, "at": TIME, "state": "finished", "stopped" or "failed", "reason": TEXT or null}

Times are in UTC, ISO 8601. An epoch that is repeated after a restart replaces the earlier one, and a trial that starts
again is running again. Readers ignore events and keys that they do not know, so that further ones can be added.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from gtvray.io import append_json_line, read_json_lines

TRIALS = "trials.jsonl"
RUNNING, FINISHED, STOPPED, FAILED = "running", "finished", "stopped", "failed"


@dataclass
class Trial:
    """A trial as its record describes it.

    Attributes:
        trial_id: Ray Tune's id.
        settings: searched settings, dotted key -> value.
        epochs: epoch -> metrics, in order of epochs.
        notes: incidents during the training and how it recovered.
        state: `RUNNING`, also if the sweep was killed; `FINISHED`, by the scheduler too; `STOPPED` at the end of the
            sweep; or `FAILED`.
        reason: why the trial failed.
    """

    trial_id: str
    settings: dict[str, Any] = field(default_factory=dict)
    epochs: dict[int, dict[str, float]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    state: str = RUNNING
    reason: str | None = None

    def curve(self, metric: str) -> list[tuple[int, float]]:
        """(epoch, value) of a metric, for the epochs that have it."""
        return [(epoch, metrics[metric]) for epoch, metrics in self.epochs.items() if metric in metrics]


class TrialRecord:
    """Writer of a sweep's record; every event is on disk when its method returns.

    Args:
        folder: the sweep's folder.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / TRIALS

    def start(self, trial: str, settings: Mapping[str, Any]) -> None:
        """Record that a trial starts, or starts again after a restart."""
        self._append("start", trial, settings=dict(settings))

    def epoch(self, trial: str, epoch: int, metrics: Mapping[str, float]) -> None:
        """Record the metrics of an epoch."""
        self._append("epoch", trial, epoch=epoch, metrics=dict(metrics))

    def note(self, trial: str, text: str) -> None:
        """Record an incident in a trial that continues."""
        self._append("note", trial, text=text)

    def end(self, trial: str, state: str, reason: str | None = None) -> None:
        """Record that a trial ended in `FINISHED`, `STOPPED`, or `FAILED` with its reason."""
        self._append("end", trial, state=state, reason=reason)

    def _append(self, event: str, trial: str, **values: Any) -> None:
        at = datetime.now(UTC).isoformat(timespec="seconds")
        append_json_line(self._path, {"event": event, "trial": trial, "at": at, **values})


def read_trials(folder: Path) -> list[Trial]:
    """Read the trials of a sweep from its folder, in order of their first start; none if there is no record."""
    trials: dict[str, Trial] = {}
    for line in read_json_lines(folder / TRIALS):
        trial = trials.setdefault(line["trial"], Trial(line["trial"]))
        match line["event"]:
            case "start":
                trial.settings, trial.state, trial.reason = line["settings"], RUNNING, None
            case "epoch":
                trial.epochs[int(line["epoch"])] = line["metrics"]
            case "note":
                trial.notes.append(line["text"])
            case "end":
                trial.state, trial.reason = line["state"], line["reason"]
    for trial in trials.values():
        trial.epochs = dict(sorted(trial.epochs.items()))
    return list(trials.values())
