"""A sweep's own record of its trials: JSON lines in the sweep's folder, written before anything is sent to MLflow.

A line is an event of a trial, or of the sweep:

    {"event": "session", "at": TIME}                    the sweep starts, or is resumed
    {"event": "plan",  "trial": ID, "at": TIME, "settings": {KEY: VALUE}, "origin": ORIGIN}
    {"event": "start", "trial": ID, "at": TIME}
    {"event": "epoch", "trial": ID, "at": TIME, "epoch": N, "metrics": {NAME: VALUE}, "cases": [DSC, ...]}
    {"event": "settings", "trial": ID, "at": TIME, "epoch": N, "settings": {KEY: VALUE}, "text": TEXT,
     "source": [ID, N]}
    {"event": "note",  "trial": ID, "at": TIME, "text": TEXT}
    {"event": "end",   "trial": ID, "at": TIME, "state": STATE, "rung": N or null, "reason": TEXT or null}

A trial is recorded before it is passed to Ray Tune, so every existing trial is in the record. Times are in UTC,
ISO 8601. An epoch that is repeated after a restart replaces the earlier one, and a trial that starts again is running
again. Readers ignore events and keys that they do not know, so that further ones can be added.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from gtvray.io import append_json_line, read_json_lines

TRIALS = "trials.jsonl"
PLANNED, RUNNING = "planned", "running"
COMPLETED, STOPPED, OUT_OF_BUDGET, FAILED = "completed", "stopped", "out of budget", "failed"
Origin = Literal["default", "given", "start", "random", "grid", "informed"]


@dataclass
class Trial:
    """A trial as its record describes it.

    Attributes:
        trial_id: its id, `t` and its number.
        settings: searched settings, dotted key -> value; the latest ones if a scheduler changed them.
        epochs: epoch -> metrics, in order of epochs.
        cases: epoch -> DSC of each selection case.
        notes: incidents during the training and how it recovered.
        state: `PLANNED`; `RUNNING`, also if the sweep was killed; `COMPLETED`, with all epochs; `STOPPED` by the
            scheduler or a stopping rule; `OUT_OF_BUDGET`; or `FAILED`.
        reason: why the trial ended before its last epoch.
        rung: number of the rung, from 1, at which the scheduler stopped it.
        origin: where its settings come from: the default settings, given by the user, the quasi-random start of the
            search, random, a grid, or informed by earlier trials.
        failures: how often it has failed.
        exploits: changes of its settings by the scheduler: (epoch, settings, description).
        to_take_over: trial and epoch whose weights it takes over before its next epoch; None if there are none.
    """

    trial_id: str
    settings: dict[str, Any] = field(default_factory=dict)
    epochs: dict[int, dict[str, float]] = field(default_factory=dict)
    cases: dict[int, tuple[float, ...]] = field(default_factory=dict, kw_only=True)
    notes: list[str] = field(default_factory=list)
    state: str = RUNNING
    reason: str | None = None
    rung: int | None = None
    origin: str = "given"
    failures: int = 0
    exploits: list[tuple[int, dict[str, Any], str]] = field(default_factory=list)
    to_take_over: tuple[str, int] | None = None

    def curve(self, metric: str) -> list[tuple[int, float]]:
        """Return (epoch, value) of a metric, for the epochs that have it."""
        return [(epoch, metrics[metric]) for epoch, metrics in self.epochs.items() if metric in metrics]

    @property
    def ended(self) -> bool:
        """Whether the trial is neither planned nor running."""
        return self.state not in (PLANNED, RUNNING)

    @property
    def ending(self) -> str:
        """How the trial ended, as text; its state if it has not ended."""
        at = f" at rung {self.rung} (epoch {max(self.epochs, default=0)})" if self.rung is not None else ""
        return f"{self.state}{at}" + (f": {self.reason}" if self.reason else "")


class TrialRecord:
    """The trials of a sweep and the writer of their record; every event is on disk when its method returns.

    Args:
        folder: the sweep's folder.

    Attributes:
        trials: the trials by id, in order of their first event.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / TRIALS
        lines = read_json_lines(self._path)
        self.trials = _trials(lines)
        self._spent_s = _spent_s(lines)
        self._began: datetime | None = None

    def begin_session(self) -> None:
        """Record that the sweep starts or is resumed."""
        self._began = datetime.now(UTC)
        append_json_line(self._path, {"event": "session", "at": self._began.isoformat(timespec="seconds")})

    @property
    def elapsed_s(self) -> float:
        """Seconds that the sweep has run, including earlier sessions."""
        now = 0.0 if self._began is None else (datetime.now(UTC) - self._began).total_seconds()
        return self._spent_s + now

    def plan(self, trial: str, settings: Mapping[str, Any], origin: str) -> None:
        """Record a trial with its settings before it is started."""
        self._append("plan", trial, settings=dict(settings), origin=origin)

    def start(self, trial: str) -> None:
        """Record that a trial starts, or starts again after a restart."""
        self._append("start", trial)

    def epoch(self, trial: str, epoch: int, metrics: Mapping[str, float], cases: Sequence[float] = ()) -> None:
        """Record the metrics of an epoch, and the DSC of each selection case."""
        self._append("epoch", trial, epoch=epoch, metrics=dict(metrics), **({"cases": list(cases)} if cases else {}))

    def change(self, trial: str, epoch: int, settings: Mapping[str, Any], text: str, source: tuple[str, int]) -> None:
        """Record that a trial continues after an epoch with changed settings and the weights of another trial's epoch.

        Args:
            trial: its id.
            epoch: its last epoch.
            settings: its settings from now on.
            text: what changed.
            source: id of the other trial, and the epoch.
        """
        self._append("settings", trial, epoch=epoch, settings=dict(settings), text=text, source=list(source))

    def note(self, trial: str, text: str) -> None:
        """Record an incident in a trial that continues."""
        self._append("note", trial, text=text)

    def end(self, trial: str, state: str, reason: str | None = None, rung: int | None = None) -> None:
        """Record that a trial ended in `COMPLETED`, `STOPPED`, `OUT_OF_BUDGET` or `FAILED`, and why."""
        self._append("end", trial, state=state, reason=reason, rung=rung)

    def _append(self, event: str, trial: str, **values: Any) -> None:
        line = {"event": event, "trial": trial, "at": datetime.now(UTC).isoformat(timespec="seconds"), **values}
        append_json_line(self._path, line)
        _apply(self.trials, line)


def read_trials(folder: Path) -> list[Trial]:
    """Read the trials of a sweep from its folder, in order of their first event; none if there is no record."""
    return list(_trials(read_json_lines(folder / TRIALS)).values())


def _trials(lines: Iterable[Mapping[str, Any]]) -> dict[str, Trial]:
    trials: dict[str, Trial] = {}
    for line in lines:
        _apply(trials, line)
    for trial in trials.values():
        trial.epochs = dict(sorted(trial.epochs.items()))
    return trials


def _apply(trials: dict[str, Trial], line: Mapping[str, Any]) -> None:
    if line.get("trial") is None:
        return
    trial = trials.setdefault(line["trial"], Trial(line["trial"]))
    match line["event"]:
        case "plan":
            trial.settings, trial.origin, trial.state = line["settings"], line["origin"], PLANNED
        case "start":
            trial.state, trial.reason, trial.rung = RUNNING, None, None
        case "epoch":
            trial.epochs[int(line["epoch"])] = line["metrics"]
            if trial.exploits and int(line["epoch"]) > trial.exploits[-1][0]:
                trial.to_take_over = None
            if line.get("cases"):
                trial.cases[int(line["epoch"])] = tuple(line["cases"])
        case "settings":
            trial.settings = line["settings"]
            trial.exploits.append((int(line["epoch"]), line["settings"], line["text"]))
            trial.to_take_over = (line["source"][0], int(line["source"][1]))
        case "note":
            trial.notes.append(line["text"])
        case "end":
            trial.state, trial.reason, trial.rung = line["state"], line["reason"], line.get("rung")
            trial.failures += trial.state == FAILED


def _spent_s(lines: Iterable[Mapping[str, Any]]) -> float:
    """Seconds from the start of each session to its last event."""
    spent_s, began, last = 0.0, None, None
    for line in lines:
        at = datetime.fromisoformat(line["at"]) if "at" in line else last
        if line.get("event") == "session":
            spent_s += (last - began).total_seconds() if began is not None and last is not None else 0.0
            began = at
        last = at
    return spent_s + ((last - began).total_seconds() if began is not None and last is not None else 0.0)
