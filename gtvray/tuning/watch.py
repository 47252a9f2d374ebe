"""Ray Tune's callback on the driver: records trials in the sweep's folder, then in MLflow, and reports progress."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray import cloudpickle
from ray.tune import Callback
from ray.tune.experiment import Trial

from gtvray.config import Choice, Range
from gtvray.errors import GtvrayError
from gtvray.failpoints import failpoint
from gtvray.tracking import RunRecorder, TrialRecord
from gtvray.tracking.trials import FAILED, FINISHED, STOPPED
from gtvray.training import EPOCH_METRICS
from gtvray.tuning.space import METRIC, decode


@dataclass(frozen=True)
class SweepStatus:
    """Progress of a sweep.

    Attributes:
        trial: id of the trial that reported last.
        epoch, epochs: its epoch, and the epochs of a full training.
        dsc: its latest selection DSC.
        best_dsc: highest selection DSC of the sweep so far.
        started, ended: numbers of trials.
        elapsed_s: seconds since the sweep started.
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
    """Records trials and reports progress.

    Args:
        record: the sweep's own record of its trials, written before MLflow's.
        recorder: the sweep's record in MLflow.
        space: search space, to decode a trial's settings.
        tags: tags of every trial's run.
        epochs: epochs of a full training.
        report: called after every epoch of every trial.
    """

    def __init__(
        self,
        record: TrialRecord,
        recorder: RunRecorder,
        *,
        space: dict[str, Range | Choice],
        tags: dict[str, str],
        epochs: int,
        report: Callable[[SweepStatus], None] | None,
    ) -> None:
        self._record, self._recorder, self._space, self._tags = record, recorder, space, tags
        self._epochs, self._report = epochs, report
        self._began = time.monotonic()
        self._best, self._started, self._ended = -1.0, 0, 0
        self._running: set[str] = set()

    def __getstate__(self) -> dict[str, Any]:
        """Return no state: Tune pickles a sweep with its callbacks, and a connection stays in its process."""
        return {}

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Record the trial's settings."""
        self._started += 1
        self._running.add(trial.trial_id)
        settings = decode(trial.config, self._space)
        self._record.start(trial.trial_id, settings)
        self._recorder.start(trial.trial_id, settings, self._tags)

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        """Record the metrics of an epoch."""
        metrics = {name: result[name] for name in EPOCH_METRICS}
        self._record.epoch(trial.trial_id, result["epoch"], metrics)
        self._recorder.log(trial.trial_id, metrics, result["epoch"])
        if result["notes"]:
            note = f"epoch {result['epoch']}: {result['notes']}"
            self._record.note(trial.trial_id, note)
            self._recorder.note(trial.trial_id, note)
        failpoint("tuning.after_report")
        self._best = max(self._best, result[METRIC])
        if self._report is not None:
            elapsed_s = time.monotonic() - self._began
            status = (trial.trial_id, result["epoch"], self._epochs, result[METRIC], self._best)
            self._report(SweepStatus(*status, self._started, self._ended, elapsed_s))

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Record that the trial ended, at its last epoch or earlier by the scheduler."""
        self._ended += 1
        self._running.discard(trial.trial_id)
        self._record.end(trial.trial_id, FINISHED)
        self._recorder.finish(trial.trial_id, "FINISHED")

    def on_trial_recover(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Record why the trial is restarted from its newest checkpoint."""
        self._record.note(trial.trial_id, f"restarted after: {_failure_reason(trial)}")

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Record that the trial failed."""
        self._ended += 1
        self._running.discard(trial.trial_id)
        self._record.end(trial.trial_id, FAILED, _failure_reason(trial))
        self._recorder.finish(trial.trial_id, "FAILED")

    def on_experiment_end(self, trials: list[Trial], **info: Any) -> None:
        """Record the trials that the end of the sweep stopped, such as its time budget."""
        for trial_id in sorted(self._running):
            self._record.end(trial_id, STOPPED)
        self._running.clear()


def _failure_reason(trial: Trial) -> str:
    """One line on the error that stopped a trial."""
    path = trial.pickled_error_file
    if path is None or not Path(path).is_file():
        return "unknown; see error.txt in the trial's folder"
    return error_reason(cloudpickle.loads(Path(path).read_bytes()))


def error_reason(error: BaseException) -> str:
    """One line on an error; of a worker's exception that Ray wraps, the exception itself."""
    cause = getattr(error, "cause", None) or error
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    if isinstance(cause, GtvrayError):
        return "; ".join(lines)
    return f"{type(cause).__name__}: {lines[0]}" if lines else type(cause).__name__
