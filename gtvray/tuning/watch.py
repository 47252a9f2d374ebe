"""Watching a sweep from the driver: figures to MLflow, a status to whoever shows it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ray.tune import Callback
from ray.tune.experiment import Trial

from gtvray.config import Choice, Range
from gtvray.failpoints import failpoint
from gtvray.tracking import SweepRecorder
from gtvray.training import EPOCH_METRICS
from gtvray.tuning.space import METRIC, decode


@dataclass(frozen=True)
class SweepStatus:
    """A sweep at a moment.

    Attributes:
        trial: the one that has just reported.
        epoch, epochs: where it is, and where a full training ends.
        dsc: its latest selection DSC.
        best_dsc: the sweep's best so far.
        started, ended: trials.
        elapsed_s: since the sweep began.
    """

    trial: str
    epoch: int
    epochs: int
    dsc: float
    best_dsc: float
    started: int
    ended: int
    elapsed_s: float


class Watcher(Callback):  # type: ignore[misc]  # Ray ships no types
    """Tune's callback, on the driver.

    Args:
        recorder: of the sweep.
        space: to read a trial's point.
        tags: of every trial's run.
        epochs: of a full training.
        report: told after every epoch of every trial.
    """

    def __init__(
        self,
        recorder: SweepRecorder,
        space: dict[str, Range | Choice],
        tags: dict[str, str],
        epochs: int,
        report: Callable[[SweepStatus], None] | None,
    ) -> None:
        self._recorder, self._space, self._tags = recorder, space, tags
        self._epochs, self._report = epochs, report
        self._began = time.monotonic()
        self._best, self._started, self._ended = -1.0, 0, 0

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune pickles a sweep with its callbacks, and a connection stays in its process."""
        return {}

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Make the trial's run."""
        self._started += 1
        self._recorder.start(trial.trial_id, decode(trial.config, self._space), self._tags)

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        """Send an epoch's figures."""
        self._recorder.log(trial.trial_id, {name: result[name] for name in EPOCH_METRICS}, result["epoch"])
        if result["notes"]:
            self._recorder.note(trial.trial_id, f"epoch {result['epoch']}: {result['notes']}")
        failpoint("tuning.after_report")
        self._best = max(self._best, result[METRIC])
        if self._report is not None:
            elapsed_s = time.monotonic() - self._began
            status = (trial.trial_id, result["epoch"], self._epochs, result[METRIC], self._best)
            self._report(SweepStatus(*status, self._started, self._ended, elapsed_s))

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """End the trial's run."""
        self._ended += 1
        self._recorder.finish(trial.trial_id, "FINISHED")

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """End the run of a trial that failed."""
        self._ended += 1
        self._recorder.finish(trial.trial_id, "FAILED")
