"""A scheduler that continues where the record of the sweep ends: rungs and medians are those of an uninterrupted sweep.

Schedulers of Ray Tune keep their state in memory. Here, the results of the record are passed to them before those of
the resumed sweep, and every epoch of a trial once, whether or not it is reported again after a restart.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import TrialScheduler

from gtvray.tracking import TrialRecord
from gtvray.tuning.searchers.base import METRIC, best_so_far


class RecordedScheduler(TrialScheduler):  # type: ignore[misc]  # Ray ships no types
    """Passes each epoch of each trial to a scheduler once, those of the record first.

    A trial's value after an epoch is that of its best epoch so far, or of the epoch if the scheduler has `uses_latest`.
    One with `judges_again` gets the epochs of trials that continue from those trials themselves, and one with
    `skips_earlier` none that the record has.

    Args:
        scheduler: decides.
        record: record of the sweep.
        unfinished: ids of its trials that continue.
    """

    def __init__(self, scheduler: TrialScheduler, record: TrialRecord, unfinished: Sequence[str]) -> None:
        super().__init__()
        self._scheduler, self._metric = scheduler, METRIC
        self._known: dict[str, int] = {}
        self._earlier = {name: best_so_far(trial) for name, trial in record.trials.items()}
        self._ended = [name for name in record.trials if name not in unfinished]
        if getattr(scheduler, "skips_earlier", False):
            self._known = {name: max(trial.epochs, default=0) for name, trial in record.trials.items()}
            self._earlier, self._ended = {}, []
        self._best: dict[str, float] = {}

    @property
    def reserved(self) -> int:
        """Number of paused trials that new ones leave their place."""
        return int(getattr(self._scheduler, "reserved", 0))

    def set_search_properties(self, metric: str | None, mode: str | None, **spec: Any) -> bool:
        """Accept that metric and mode are known already."""
        return metric is None and mode is None

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        """Add a trial, with its epochs of the record; before the first, the trials that have ended."""
        self._replay_ended(tune_controller)
        self._scheduler.on_trial_add(tune_controller, trial)
        if not getattr(self._scheduler, "judges_again", False):
            self._replay(tune_controller, trial)

    def on_trial_error(self, tune_controller: Any, trial: Trial) -> None:
        """Pass on that a trial failed."""
        self._scheduler.on_trial_error(tune_controller, trial)

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """Return the decision after an epoch; one that is reported again continues."""
        name, epoch = trial.trial_id, result["epoch"]
        self._best[name] = max(self._best.get(name, float("-inf")), result[METRIC])
        if epoch <= self._known.get(name, 0):
            return str(TrialScheduler.CONTINUE)
        self._known[name] = epoch
        value = result[METRIC] if getattr(self._scheduler, "uses_latest", False) else self._best[name]
        return str(self._scheduler.on_trial_result(tune_controller, trial, {**result, METRIC: value}))

    def on_trial_complete(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> None:
        """Pass on that a trial has ended."""
        best = self._best.get(trial.trial_id, result.get(METRIC))
        self._scheduler.on_trial_complete(tune_controller, trial, {**result, METRIC: best})

    def on_trial_remove(self, tune_controller: Any, trial: Trial) -> None:
        """Pass on that a trial was removed before it ran."""
        self._scheduler.on_trial_remove(tune_controller, trial)

    def choose_trial_to_run(self, tune_controller: Any) -> Trial | None:
        """Return the trial that the scheduler runs next."""
        return self._scheduler.choose_trial_to_run(tune_controller)

    def debug_string(self) -> str:
        """Describe the state of the scheduler."""
        return str(self._scheduler.debug_string())

    def _replay_ended(self, tune_controller: Any) -> None:
        for name in self._ended:
            # A stand-in: the trial itself has ended in an earlier process.
            trial = Trial("ended", stub=True, trial_id=name)
            self._scheduler.on_trial_add(tune_controller, trial)
            last = self._replay(tune_controller, trial)
            if last is not None:
                self._scheduler.on_trial_complete(tune_controller, trial, last)
        self._ended = []

    def _replay(self, tune_controller: Any, trial: Trial) -> dict[str, Any] | None:
        """Pass on the recorded epochs of a trial, and return the last; what was decided then has happened."""
        result = None
        for epoch, best in self._earlier.pop(trial.trial_id, []):
            self._known[trial.trial_id], self._best[trial.trial_id] = epoch, best
            result = {"epoch": epoch, METRIC: best}
            self._scheduler.on_trial_result(tune_controller, trial, result)
        return result
