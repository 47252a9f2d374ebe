"""Schedulers under which trials wait at a rung until others have reached it: top-k and PASHA.

A rule decides after every epoch whether a trial continues, stops or waits, and later which waiting trials continue. The
scheduler applies it by pausing trials, which keep their checkpoints.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, Protocol

from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from gtvray.tuning.searchers.base import METRIC

Verdict = Literal["continue", "stop", "wait"]


class Rule(Protocol):
    """Decides on trials by their values at rungs."""

    def report(self, trial: str, epoch: int, value: float) -> Verdict:
        """Return the verdict on a trial after an epoch."""

    def release(self, waiting: list[str], last: bool) -> tuple[list[str], list[str]]:
        """Return the waiting trials that continue and those that stop; the others keep waiting.

        Args:
            waiting: trials that wait, in order of their arrival.
            last: whether every other trial has ended and no further one will start.
        """


class WaitingScheduler(FIFOScheduler):  # type: ignore[misc]  # Ray ships no types
    """Applies a rule by pausing and resuming trials.

    Args:
        rule: decides which trials continue.
        epochs: epochs of a full training.
        exhausted: returns whether no further trial will start.
    """

    # A trial that is resumed from the record reaches its rungs again, and waits there again.
    judges_again = True

    def __init__(self, rule: Rule, epochs: int, exhausted: Callable[[], bool]) -> None:
        super().__init__()
        self._rule, self._epochs, self._exhausted = rule, epochs, exhausted
        self._trials: dict[str, Trial] = {}
        self._waiting: list[str] = []
        self._released: list[str] = []

    @property
    def reserved(self) -> int:
        """Number of trials that may continue and are still paused; new trials do not take their slots."""
        return sum(self._trials[name].status == Trial.PAUSED for name in self._released)

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        """Add a trial."""
        self._trials[trial.trial_id] = trial

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """Return the decision after an epoch."""
        name = trial.trial_id
        if name in self._released:
            self._released.remove(name)
        if result["epoch"] >= self._epochs:
            return str(TrialScheduler.STOP)
        verdict = self._rule.report(name, result["epoch"], result[METRIC])
        if verdict == "wait":
            self._waiting.append(name)
            self._settle(tune_controller, last=False)
            return str(TrialScheduler.PAUSE)
        return str(TrialScheduler.STOP if verdict == "stop" else TrialScheduler.CONTINUE)

    def on_trial_complete(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> None:
        """Forget a trial that has ended."""
        self._forget(trial.trial_id)

    def on_trial_remove(self, tune_controller: Any, trial: Trial) -> None:
        """Forget a trial that was stopped while it waited."""
        self._forget(trial.trial_id)

    def on_trial_error(self, tune_controller: Any, trial: Trial) -> None:
        """Forget that a failed trial waited; if it is restarted, it reaches its rung again."""
        self._forget(trial.trial_id)

    def choose_trial_to_run(self, tune_controller: Any) -> Trial | None:
        """Return a trial that is new or may continue; at the end, stop the trials that the rule drops."""
        trials = tune_controller.get_trials()
        active = any(trial.status in (Trial.PENDING, Trial.RUNNING) for trial in trials)
        if self._waiting and not active and not self._released and self._exhausted():
            self._settle(tune_controller, last=True)
        # Released trials take precedence over new ones.
        ready = [trial for trial in trials if trial.status == Trial.PAUSED and trial.trial_id in self._released]
        return next((trial for trial in [*ready, *trials] if trial in ready or trial.status == Trial.PENDING), None)

    def debug_string(self) -> str:
        """Describe the state."""
        return f"{len(self._waiting)} trials wait"

    def _settle(self, tune_controller: Any, last: bool) -> None:
        go, stop = self._rule.release(list(self._waiting), last)
        for name in go:
            self._waiting.remove(name)
            self._released.append(name)
        for name in stop:
            tune_controller.stop_trial(self._trials[name])

    def _forget(self, name: str) -> None:
        for names in (self._waiting, self._released):
            if name in names:
                names.remove(name)
