"""Searches replayed on a table of recorded trainings: one worker, no training, no model of the table.

A method proposes points; each trial is the nearest row that has not been tried yet, so proposals are restricted to
rows of the table. Schedulers and searchers are those of gtvray; the plain baselines are Ray Tune's and Optuna's own.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from _sweep_table import Table
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.schedulers import ASHAScheduler, TrialScheduler

from gtvray.config import SweepConfig, with_dotted
from gtvray.tracking import TrialRecord
from gtvray.tracking.trials import COMPLETED, STOPPED, Trial
from gtvray.tuning.schedulers.registry import Setting, build_scheduler
from gtvray.tuning.searchers.base import METRIC, Proposal, Searcher
from gtvray.tuning.searchers.registry import build_searcher
from gtvray.tuning.space import Space

RANDOM_TRIALS = 32


@dataclass
class Outcome:
    """Result of a search.

    Attributes:
        best: best selection DSC after each trained epoch.
        row: row of the winner.
        epoch: its best epoch, from 0.
    """

    best: list[float] = field(default_factory=list)
    row: int = 0
    epoch: int = 0

    def see(self, row: int, epoch: int, value: float) -> None:
        """Count an epoch of a row."""
        if not self.best or value > self.best[-1]:
            self.row, self.epoch = row, epoch
        self.best.append(max(value, self.best[-1]) if self.best else value)

    def epochs_to(self, target: float) -> float:
        """Return the epochs that were trained when a value was reached; infinity if it was not."""
        return next((float(number) for number, value in enumerate(self.best, 1) if value >= target), float("inf"))


Method = Callable[[Table, int], Outcome]


class MemoryRecord(TrialRecord):
    """A record of trials that is not written to disk."""

    def __init__(self) -> None:
        super().__init__(Path(tempfile.gettempdir()) / "no-such-sweep")

    def _append(self, event: str, trial: str, **values: Any) -> None:
        from gtvray.tracking.trials import _apply

        _apply(self.trials, {"event": event, "trial": trial, "at": "2026-01-01T00:00:00+00:00", **values})


class Rows:
    """Rows of a table that a search has not tried yet."""

    def __init__(self, table: Table, sweep: SweepConfig) -> None:
        self._positions, self._left = table.positions(), list(range(len(table.rows)))
        self._table, self._entries = table, sweep.space

    def take(self, point: dict[str, Any]) -> int | None:
        """Return the row nearest to a point, and take it."""
        from _sweep_table import _position

        if not self._left:
            return None
        position = np.array([_position(entry, point[key]) for key, entry in self._entries.items()])
        distances = ((self._positions[self._left] - position) ** 2).sum(axis=1)
        return self._left.pop(int(distances.argmin()))


class TableSearcher:
    """A searcher whose proposals are rows of a table."""

    def __init__(self, searcher: Searcher, rows: Rows, table: Table) -> None:
        self._searcher, self._rows, self._table = searcher, rows, table
        self.row_of: dict[str, int] = {}

    def propose(self, trials: Sequence[Trial]) -> Proposal | None:
        """Return the next row's point."""
        proposal = self._searcher.propose(trials)
        row = None if proposal is None else self._rows.take(proposal.point)
        if row is None or proposal is None:
            return None
        self.row_of[f"t{len(trials)}"] = row
        return Proposal(self._table.rows[row].point, proposal.origin)


def gtvray_method(trials: int, searcher: str, **scheduler: Any) -> Method:
    """A sweep of gtvray with these settings of a sweep file."""

    def run(table: Table, seed: int) -> Outcome:
        sweep = SweepConfig.model_validate(
            {"space": table.space, "trials": trials, "searcher": searcher, "seed": seed, "scheduler": scheduler}
        )
        config = with_dotted(table.config, {"training.epochs": table.epochs})
        space = Space(sweep.space, config)
        searching = TableSearcher(build_searcher(sweep, space, table.rows[0].point), Rows(table, sweep), table)
        return _Controller(sweep, space, searching, table).run()

    return run


class _Controller:
    """The part of Tune's controller that schedulers use, with one running trial at a time."""

    def __init__(self, sweep: SweepConfig, space: Space, searcher: TableSearcher, table: Table) -> None:
        self._sweep, self._searcher, self._table = sweep, searcher, table
        self._record, self._outcome = MemoryRecord(), Outcome()
        setting = Setting(sweep, space, table.epochs, self._record, self._exhausted)
        self._scheduler = build_scheduler(setting, [])
        self._trials: list[TuneTrial] = []
        self._ended = False

    def run(self) -> Outcome:
        """Run the sweep."""
        while True:
            active = any(trial.status in (TuneTrial.PENDING, TuneTrial.RUNNING) for trial in self._trials)
            if not active and not self._scheduler.reserved and not self._exhausted():
                self._start()
            chosen = self._scheduler.choose_trial_to_run(self)
            if chosen is None:
                return self._outcome
            self._train(chosen)

    def get_trials(self) -> list[TuneTrial]:
        """Return all trials."""
        return self._trials

    def stop_trial(self, trial: TuneTrial) -> None:
        """Stop a paused trial."""
        self._scheduler.on_trial_remove(self, trial)
        self._end(trial, STOPPED)

    def _exhausted(self) -> bool:
        return self._ended or len(self._record.trials) >= self._sweep.trials

    def _start(self) -> None:
        proposal = self._searcher.propose(list(self._record.trials.values()))
        if proposal is None:
            self._ended = True
            return
        trial = TuneTrial("trial", stub=True, trial_id=f"t{len(self._record.trials)}")
        self._record.plan(trial.trial_id, proposal.point, proposal.origin)
        self._trials.append(trial)
        self._scheduler.on_trial_add(self, trial)

    def _train(self, trial: TuneTrial) -> None:
        trial.set_status(TuneTrial.RUNNING)
        row = self._searcher.row_of[trial.trial_id]
        self._record.start(trial.trial_id)
        while trial.status == TuneTrial.RUNNING:
            epoch = len(self._record.trials[trial.trial_id].epochs) + 1
            value = self._table.rows[row].curve[epoch - 1]
            self._outcome.see(row, epoch - 1, value)
            result = {"epoch": epoch, METRIC: value}
            decision = self._scheduler.on_trial_result(self, trial, result)
            self._record.epoch(trial.trial_id, epoch, {METRIC: value})
            if decision == TrialScheduler.PAUSE:
                trial.set_status(TuneTrial.PAUSED)
            elif decision == TrialScheduler.STOP or epoch == self._table.epochs:
                self._scheduler.on_trial_complete(self, trial, result)
                self._end(trial, COMPLETED if epoch == self._table.epochs else STOPPED)

    def _end(self, trial: TuneTrial, state: str) -> None:
        trial.set_status(TuneTrial.TERMINATED)
        self._record.end(trial.trial_id, state)


def random_full(trials: int) -> Method:
    """Random search with full trainings, after the default settings."""

    def run(table: Table, seed: int) -> Outcome:
        order = np.random.default_rng(seed).permutation(np.arange(1, len(table.rows)))[: trials - 1]
        outcome = Outcome()
        for row in [0, *order.tolist()]:
            for epoch, value in enumerate(table.rows[row].curve):
                outcome.see(row, epoch, value)
        return outcome

    return run


def plain_asha(trials: int) -> Method:
    """Ray Tune's OptunaSearch and ASHA by default: a stopped trial is reported as complete with its last value."""

    def run(table: Table, seed: int) -> Outcome:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        sweep = SweepConfig.model_validate({"space": table.space})
        study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=seed))
        asha = ASHAScheduler(time_attr="epoch", metric=METRIC, mode="max", max_t=table.epochs, grace_period=1)
        rows, outcome = Rows(table, sweep), Outcome()
        for number in range(trials):
            row = _ask_row(study, sweep, rows, table.rows[0].point if number == 0 else None)
            if row is None:
                break
            trial = TuneTrial("trial", stub=True, trial_id=str(number))
            asha.on_trial_add(None, trial)
            value = 0.0
            for epoch, value in enumerate(table.rows[row].curve, 1):
                outcome.see(row, epoch - 1, value)
                if asha.on_trial_result(None, trial, {"epoch": epoch, METRIC: value}) == TrialScheduler.STOP:
                    break
            study.add_trial(_told(sweep, table.rows[row].point, value))
        return outcome

    return run


def _ask_row(study: Any, sweep: SweepConfig, rows: Rows, fixed: dict[str, Any] | None) -> int | None:
    from gtvray.tuning.searchers.optuna import _suggest

    if fixed is not None:
        return rows.take(fixed)
    asked = study.ask()
    point = {key: _suggest(asked, key, entry) for key, entry in sweep.space.items()}
    # The nearest row is trained and added to the study in place of the suggested point.
    study.tell(asked, state=optuna.trial.TrialState.FAIL)
    return rows.take(point)


def _told(sweep: SweepConfig, point: dict[str, Any], value: float) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    from gtvray.config import Choice
    from gtvray.tuning.searchers.optuna import _stored

    distributions = {
        key: CategoricalDistribution([_stored(each, entry) for each in entry.choice])
        if isinstance(entry, Choice)
        else FloatDistribution(entry.low, entry.high, log=entry.log)
        for key, entry in sweep.space.items()
    }
    params = {key: _stored(point[key], entry) for key, entry in sweep.space.items()}
    inside = {
        key: min(max(params[key], d.low), d.high) if isinstance(d, FloatDistribution) else params[key]
        for key, d in distributions.items()
    }
    return optuna.trial.create_trial(params=inside, distributions=distributions, value=value)
