"""Ray Tune's callback on the driver: records trials in the sweep's folder, then in MLflow, and reports progress."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ray import cloudpickle
from ray.tune import Callback
from ray.tune.experiment import Trial

from gtvray.errors import GtvrayError
from gtvray.failpoints import failpoint
from gtvray.tracking import RunRecorder, TrialRecord
from gtvray.tracking.trials import COMPLETED, FAILED, OUT_OF_BUDGET, PLANNED, STOPPED
from gtvray.training import EPOCH_METRICS
from gtvray.tuning.cost import LATENCY, PEAK
from gtvray.tuning.searchers.base import METRIC, value_of
from gtvray.tuning.stopping import BudgetStopper

_BLOCKS, _SPARKS = "▁▂▃▄▅▆▇█", 20
# Without rungs, only median stopping ends a trial early.
_BELOW_MEDIAN = "below the median of the other trials"
# MLflow has no status for a training that was stopped early on purpose; the tag `gtvray.ending` gives the reason.
_STATUS = {COMPLETED: "FINISHED", STOPPED: "KILLED", OUT_OF_BUDGET: "KILLED", FAILED: "FAILED"}


@dataclass(frozen=True)
class SweepStatus:
    """Progress of a sweep.

    Attributes:
        trial: id of the trial that reported last.
        epoch, epochs: its epoch, and the epochs of a full training.
        dsc: its latest selection DSC.
        best_dsc: highest selection DSC of the sweep so far.
        started, ended: numbers of trials.
        elapsed_s: seconds that the sweep has run, including earlier sessions.
        event: "epoch", or how the trial ended.
        states: number of trials by state.
        best: id of the best trial so far, and its DSC by epoch.
        highest: highest selection DSC of the trial that reported last; None before its first epoch.
    """

    trial: str
    epoch: int
    epochs: int
    dsc: float
    best_dsc: float
    started: int
    ended: int
    elapsed_s: float
    event: str = "epoch"
    states: Mapping[str, int] = field(default_factory=dict)
    best: tuple[str, tuple[float, ...]] = ("", ())
    highest: float | None = None

    def ending_text(self, trials: int) -> str:
        """Describe the end of the trial in a line.

        Args:
            trials: number of trials of the sweep.
        """
        best = "no epoch" if self.highest is None else f"best DSC {self.highest:.3f}"
        return f"trial {self.trial}: {self.event}, {best} ({self.ended} of {trials} trials have ended)"

    def text(self, trials: int) -> str:
        """Describe the progress in a line.

        Args:
            trials: number of trials of the sweep.
        """
        counts = ", ".join(f"{number} {state}" for state, number in self.states.items())
        news = f"epoch {self.epoch}/{self.epochs}, DSC {self.dsc:.3f}" if self.event == "epoch" else self.event
        best, curve = self.best
        return (
            f"trial {self.started}/{trials} ({counts}), {self.trial} {news}, "
            f"best {self.best_dsc:.3f} of {best} {sparkline(curve)}"
        )


def sparkline(values: Sequence[float]) -> str:
    """Draw values as a line of block characters; only the last ones if there are many."""
    shown = values[-_SPARKS:]
    if not shown:
        return ""
    low, width = min(shown), (max(shown) - min(shown)) or 1.0
    return "".join(_BLOCKS[int((value - low) / width * (len(_BLOCKS) - 1))] for value in shown)


class Watcher(Callback):  # type: ignore[misc]  # Ray ships no types
    """Records trials and reports progress.

    Args:
        record: the sweep's own record of its trials, written before MLflow's.
        recorder: the sweep's record in MLflow.
        tags: tags of every trial's run.
        epochs: epochs of a full training.
        rungs: epochs at which the scheduler may stop a trial; empty with median stopping, which compares after every
            epoch.
        stopper: provides the reason if the sweep was stopped.
        report: called after every epoch and at the end of every trial.
    """

    def __init__(
        self,
        record: TrialRecord,
        recorder: RunRecorder,
        *,
        tags: dict[str, str],
        epochs: int,
        rungs: list[int],
        stopper: BudgetStopper,
        report: Callable[[SweepStatus], None] | None,
    ) -> None:
        self._record, self._recorder, self._tags = record, recorder, tags
        self._epochs, self._rungs, self._stopper, self._report = epochs, rungs, stopper, report

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Record the trial's settings."""
        recorded = self._record.trials[trial.trial_id]
        # Params of a run cannot change; settings that the scheduler has changed are logged as metrics.
        params = {} if recorded.exploits else recorded.settings
        self._record.start(trial.trial_id)
        self._recorder.start(
            trial.trial_id, params, {**self._tags, "gtvray.origin": recorded.origin, "gtvray.ending": ""}
        )
        failpoint("tuning.after_start")

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        """Record the metrics of an epoch."""
        name, epoch = trial.trial_id, result["epoch"]
        if self._is_known(name, epoch, result[METRIC]):
            return
        metrics = {metric: result[metric] for metric in (*EPOCH_METRICS, LATENCY, PEAK) if metric in result}
        self._record.epoch(name, epoch, metrics, result.get("case_dsc", ()))
        self._recorder.log(name, metrics | self._changed(name), epoch)
        if result["notes"]:
            note = f"epoch {epoch}: {result['notes']}"
            self._record.note(name, note)
            self._recorder.note(name, note)
        failpoint("tuning.after_report")
        self._send(name, "epoch")

    def _is_known(self, name: str, epoch: int, value: float) -> bool:
        """Return whether an epoch is reported again, as by a training that continues from a checkpoint."""
        recorded = self._record.trials[name]
        known = recorded.epochs.get(epoch)
        if known is None:
            return False
        # In the checkpoint of a trial that took over weights, earlier epochs are those of the other trial.
        of_another = bool(recorded.exploits) and epoch <= recorded.exploits[-1][0]
        return of_another or known[METRIC] == value

    def _changed(self, name: str) -> dict[str, float]:
        """Return the numbers among changed settings: params of a run cannot change, so they are logged as metrics."""
        trial = self._record.trials[name]
        numbers = {key: value for key, value in trial.settings.items() if isinstance(value, int | float)}
        return {f"settings.{key}": float(value) for key, value in numbers.items()} if trial.exploits else {}

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Record that the trial ended, at its last epoch or earlier by the scheduler."""
        epoch = max(self._record.trials[trial.trial_id].epochs, default=0)
        if epoch >= self._epochs:
            self._end(trial.trial_id, COMPLETED)
        elif not self._rungs:
            self._end(trial.trial_id, STOPPED, _BELOW_MEDIAN)
        else:
            self._end(trial.trial_id, STOPPED, rung=sum(rung <= epoch for rung in self._rungs))

    def on_trial_recover(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Record why the trial is restarted from its newest checkpoint."""
        self._record.note(trial.trial_id, f"restarted after: {_failure_reason(trial)}")

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Record that the trial failed."""
        self._end(trial.trial_id, FAILED, _failure_reason(trial))

    def on_experiment_end(self, trials: list[Trial], **info: Any) -> None:
        """Record the trials that were stopped together with the sweep, for example by its time budget.

        If the stopper has no reason, the sweep itself has failed; its trials then continue when it is resumed.
        """
        if self._stopper.reason is None:
            return
        for name, trial in self._record.trials.items():
            if not trial.ended:
                self._end(name, self._stopper.state, self._stopper.reason)

    def _end(self, name: str, state: str, reason: str | None = None, rung: int | None = None) -> None:
        self._record.end(name, state, reason, rung)
        self._recorder.start(name, {}, {"gtvray.ending": self._record.trials[name].ending})
        self._recorder.finish(name, _STATUS[state])
        failpoint("tuning.after_end")
        self._send(name, self._record.trials[name].ending)

    def _send(self, name: str, event: str) -> None:
        if self._report is None:
            return
        trials = self._record.trials
        curve = trials[name].curve(METRIC)
        epoch, dsc = curve[-1] if curve else (0, float("nan"))
        values = {each: value for each, trial in trials.items() if (value := value_of(trial)) is not None}
        best = max(values, key=lambda each: values[each], default="")
        self._report(
            SweepStatus(
                trial=name,
                epoch=epoch,
                epochs=self._epochs,
                dsc=dsc,
                best_dsc=values.get(best, float("nan")),
                started=sum(trial.state != PLANNED for trial in trials.values()),
                ended=sum(trial.ended for trial in trials.values()),
                elapsed_s=self._record.elapsed_s,
                event=event,
                states=Counter(trial.state for trial in trials.values()),
                best=(best, tuple(value for _, value in trials[best].curve(METRIC)) if best else ()),
                highest=max((value for _, value in curve), default=None),
            )
        )


def _failure_reason(trial: Trial) -> str:
    """Return the error that stopped a trial, in one line."""
    path = trial.pickled_error_file
    if path is None or not Path(path).is_file():
        return "unknown; see error.txt in the trial's folder"
    return error_reason(cloudpickle.loads(Path(path).read_bytes()))


def error_reason(error: BaseException) -> str:
    """Describe an error in one line; for an exception that Ray wraps, the original exception."""
    cause = getattr(error, "cause", None) or error
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    if isinstance(cause, GtvrayError):
        return "; ".join(lines)
    return f"{type(cause).__name__}: {lines[0]}" if lines else type(cause).__name__
