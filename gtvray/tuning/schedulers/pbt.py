"""Population-based training: trials of the lower quantile continue from checkpoints of the upper with changed settings.

After Jaderberg et al., "Population Based Training of Neural Networks" (arXiv 1711.09846), implemented with
Ray Tune's scheduler. Every change is recorded together with the trial that it came from.
"""

from __future__ import annotations

from typing import Any

from ray import tune
from ray.tune.experiment import Trial
from ray.tune.schedulers import PopulationBasedTraining

from gtvray.config import Choice, Range, SweepConfig
from gtvray.failpoints import failpoint
from gtvray.tracking import TrialRecord
from gtvray.tuning.searchers.base import METRIC
from gtvray.tuning.space import Space, describe_point


class RecordedPbt(PopulationBasedTraining):  # type: ignore[misc]  # Ray ships no types
    """Ray Tune's PBT scheduler that keeps values within their ranges and records every change.

    Args:
        sweep: settings of the sweep.
        space: its search space.
        record: record of the sweep.
    """

    # The latest weights are copied, so the latest value of a trial is compared and not that of its best epoch.
    uses_latest = True
    # Recorded epochs of a resumed trial trigger no perturbation; the interval restarts.
    skips_earlier = True

    def __init__(self, sweep: SweepConfig, space: Space, record: TrialRecord) -> None:
        self._space, self._record = space, record
        super().__init__(
            time_attr="epoch",
            metric=METRIC,
            mode="max",
            perturbation_interval=sweep.scheduler.grace_epochs,
            hyperparam_mutations={key: _domain(entry) for key, entry in space.entries.items()},
            custom_explore_fn=space.nearest,
            log_config=False,
            # Trials synchronise at each interval, so that exploitation does not depend on their speed.
            synch=True,
        )

    def on_trial_error(self, tune_controller: Any, trial: Trial) -> None:
        """Exclude a failed trial from those that synchronise; Ray Tune adds it again if it restarts it."""
        super().on_trial_error(tune_controller, trial)
        # Ray Tune keeps it among the live trials, and the others would wait for it.
        tune_controller.get_live_trials().discard(trial)

    def choose_trial_to_run(self, tune_controller: Any) -> Trial | None:
        """Return the trial that runs next; if all others wait for one that has ended, let them continue first."""
        chosen = super().choose_trial_to_run(tune_controller)
        trials = tune_controller.get_trials()
        if chosen is not None or any(trial.status in (Trial.PENDING, Trial.RUNNING) for trial in trials):
            return chosen
        paused = [trial for trial in trials if trial.status == Trial.PAUSED]
        if paused:
            self._synchronise(tune_controller, paused)
        return super().choose_trial_to_run(tune_controller)

    def _synchronise(self, tune_controller: Any, paused: list[Trial]) -> None:
        """Perturb paused trials, which Ray Tune does only when a trial reports, and let them continue."""
        before = self._next_perturbation_sync
        last = max(paused, key=lambda trial: self._trial_state[trial].last_train_time)
        result = self._trial_state[last].last_result
        if result is not None:
            # Its last report again: all live trials have reached the interval now, so they are perturbed.
            self.on_trial_result(tune_controller, last, result)
        if self._next_perturbation_sync == before:
            self._next_perturbation_sync += self._perturbation_interval

    def _exploit(self, tune_controller: Any, trial: Trial, trial_to_clone: Trial) -> None:
        super()._exploit(tune_controller, trial, trial_to_clone)
        source = trial_to_clone.trial_id, self._trial_state[trial_to_clone].last_result["epoch"]
        # The record may lack the epoch that has just been reported.
        epoch = self._trial_state[trial].last_result["epoch"]
        text = f"epoch {source[1]} of {source[0]}, with {describe_point(trial.config)}"
        self._record.change(trial.trial_id, epoch, trial.config, text, source)
        failpoint("tuning.after_exploit")


def _domain(entry: Range | Choice) -> Any:
    if isinstance(entry, Choice):
        return list(entry.choice)
    low, high = entry.corners()
    if entry.integer:
        return tune.lograndint(low, high + 1) if entry.log else tune.randint(low, high + 1)
    return tune.loguniform(low, high) if entry.log else tune.uniform(low, high)
