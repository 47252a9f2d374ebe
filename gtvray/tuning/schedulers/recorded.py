"""A scheduler wrapper that replays the record of a sweep, so that a resumed sweep decides as an uninterrupted one.

Schedulers of Ray Tune keep their state in memory. When a sweep is resumed, the recorded results are passed to the
scheduler before new ones. Each epoch of a trial is passed once, even if it is reported again after a restart.
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

    The value of a trial after an epoch is that of its best epoch so far. Class attributes of the wrapped scheduler
    change this: with `uses_latest` the value is that of the epoch itself, with `judges_again` the recorded epochs of
    trials that continue are not replayed, since these trials report them again, and with `skips_earlier` no recorded
    epoch is passed on.

    Args:
        scheduler: scheduler to wrap.
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
        """Number of slots that are reserved for paused trials; new trials do not take them."""
        return int(getattr(self._scheduler, "reserved", 0))

    def set_search_properties(self, metric: str | None, mode: str | None, **spec: Any) -> bool:
        """Return whether metric and mode are left unset, since both are fixed."""
        return metric is None and mode is None

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        """Add a trial and replay its recorded epochs; replay ended trials before the first one."""
        self._replay_ended(tune_controller)
        self._scheduler.on_trial_add(tune_controller, trial)
        if not getattr(self._scheduler, "judges_again", False):
            self._replay(tune_controller, trial)

    def on_trial_error(self, tune_controller: Any, trial: Trial) -> None:
        """Forward the failure of a trial."""
        self._scheduler.on_trial_error(tune_controller, trial)

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """Return the decision after an epoch; CONTINUE for an epoch that was passed on before."""
        name, epoch = trial.trial_id, result["epoch"]
        self._best[name] = max(self._best.get(name, float("-inf")), result[METRIC])
        if epoch <= self._known.get(name, 0):
            return str(TrialScheduler.CONTINUE)
        self._known[name] = epoch
        value = result[METRIC] if getattr(self._scheduler, "uses_latest", False) else self._best[name]
        return str(self._scheduler.on_trial_result(tune_controller, trial, {**result, METRIC: value}))

    def on_trial_complete(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> None:
        """Forward the end of a trial."""
        best = self._best.get(trial.trial_id, result.get(METRIC))
        self._scheduler.on_trial_complete(tune_controller, trial, {**result, METRIC: best})

    def on_trial_remove(self, tune_controller: Any, trial: Trial) -> None:
        """Forward the removal of a trial."""
        self._scheduler.on_trial_remove(tune_controller, trial)

    def choose_trial_to_run(self, tune_controller: Any) -> Trial | None:
        """Return the trial that the scheduler runs next."""
        return self._scheduler.choose_trial_to_run(tune_controller)

    def debug_string(self) -> str:
        """Describe the state of the scheduler."""
        return str(self._scheduler.debug_string())

    def _replay_ended(self, tune_controller: Any) -> None:
        for name in self._ended:
            # A stub, since the trial itself ended in an earlier process.
            trial = Trial("ended", stub=True, trial_id=name)
            self._scheduler.on_trial_add(tune_controller, trial)
            last = self._replay(tune_controller, trial)
            if last is not None:
                self._scheduler.on_trial_complete(tune_controller, trial, last)
        self._ended = []

    def _replay(self, tune_controller: Any, trial: Trial) -> dict[str, Any] | None:
        """Replay the recorded epochs of a trial, ignoring the decisions, and return the last result."""
        result = None
        for epoch, best in self._earlier.pop(trial.trial_id, []):
            self._known[trial.trial_id], self._best[trial.trial_id] = epoch, best
            result = {"epoch": epoch, METRIC: best}
            self._scheduler.on_trial_result(tune_controller, trial, result)
        return result
