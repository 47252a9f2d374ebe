"""The result of a sweep: its trials, ranked by the selection DSC of their available checkpoints."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from gtvray.config import Config, with_dotted
from gtvray.errors import GtvrayError, TrainingError
from gtvray.models import Checkpoint
from gtvray.tracking.trials import COMPLETED, FAILED, OUT_OF_BUDGET, Trial
from gtvray.training.checkpoints import checkpoint_path
from gtvray.tuning.searchers.base import METRIC
from gtvray.tuning.searchers.repeated import by_point, same_point


@dataclass(frozen=True)
class TrialResult:
    """Result of a trial with a usable checkpoint.

    Attributes:
        trial_id: its id, also a tag of its MLflow run.
        point: dotted key -> searched value.
        origin: where the point comes from.
        ending: how the trial ended, as text.
        epochs: number of completed epochs.
        best_dsc: best selection DSC of the epochs whose checkpoint exists.
        best_epoch: that epoch.
        best_checkpoint: its checkpoint.
    """

    trial_id: str
    point: dict[str, Any]
    origin: str
    ending: str
    epochs: int
    best_dsc: float
    best_epoch: int
    best_checkpoint: Path


@dataclass(frozen=True)
class SweepResult:
    """Result of a sweep.

    Attributes:
        config: settings of all trials.
        trials: trials with a complete checkpoint, best first; failed trials come last.
        ended: every trial as it was recorded, in order.
    """

    config: Config
    trials: tuple[TrialResult, ...]
    ended: tuple[Trial, ...]

    @property
    def best(self) -> TrialResult:
        """The trial with the highest selection DSC."""
        return self.trials[0]

    @property
    def failed(self) -> int:
        """Number of failed trials."""
        return sum(trial.state == FAILED for trial in self.ended)

    @property
    def unfinished(self) -> list[str]:
        """Ids of the trials that the time budget stopped; a larger budget continues them."""
        return [trial.trial_id for trial in self.ended if trial.state == OUT_OF_BUDGET]

    def config_of(self, trial: TrialResult) -> Config:
        """Return the settings of a trial."""
        return with_dotted(self.config, trial.point, trial.trial_id)


def rank(
    trials: Iterable[Trial],
    folder: Path,
    config: Config,
    earlier: Mapping[str, tuple[float, int]] | None = None,
    members: int = 1,
) -> SweepResult:
    """Rank the trials of a sweep; ties go to the earlier trial.

    Args:
        trials: record of the trials.
        folder: contains a folder of checkpoints per trial.
        config: settings of all trials.
        earlier: best DSC and its epoch, for trials ranked in an earlier session. Their checkpoints may have been
            removed, because a better trial was kept.
        members: number of trials of a point, one per fold or repeat. If more than one, points with more completed
            trials rank before those with fewer, so that a point cannot win by one lucky fold or seed.

    Raises:
        TrainingError: no trial has a complete checkpoint.
    """
    ended = tuple(trials)
    failed = {trial.trial_id for trial in ended if trial.state == FAILED}
    best = {trial.trial_id: _best(trial, folder) or (earlier or {}).get(trial.trial_id) for trial in ended}
    found = [_result(trial, *at, folder) for trial in ended if (at := best[trial.trial_id]) is not None]
    # Trials that differ only in their seed rank by the mean of their point; the maximum over seeds would be biased.
    means, complete = dict[str, float](), dict[str, int]()
    for group in by_point(ended):
        values = {trial.trial_id: at[0] for trial in group if (at := best[trial.trial_id]) is not None}
        count = sum(trial.state == COMPLETED for trial in group) if members > 1 else 0
        means |= dict.fromkeys(values, fmean(values.values()) if values else 0.0)
        complete |= dict.fromkeys(values, count)

    def order(trial: TrialResult) -> tuple[bool, int, float, float]:
        name = trial.trial_id
        return name in failed, -complete[name], -means[name], -trial.best_dsc

    ranked = sorted(found, key=order)
    # Load the best checkpoint, so that damage is found here and not during export.
    while ranked and not _sound(ranked[0].best_checkpoint):
        ranked.pop(0)
    if not ranked:
        first = next((trial.reason for trial in ended if trial.reason), "no result")
        raise TrainingError(
            "no trial completed an epoch",
            found=first,
            do="see error.txt of the trials in the folder of the sweep; correct the cause and resume the sweep",
        )
    return SweepResult(config, tuple(ranked), ended)


def remove_losers(result: SweepResult, folder: Path, unfinished: Sequence[str]) -> None:
    """Remove the checkpoints of all trials but those of the best point, the default settings and unfinished trials.

    Those of the default settings are needed when the sweep is continued and another trial is the best.

    Args:
        result: result of the sweep.
        folder: contains a folder of checkpoints per trial.
        unfinished: ids of the trials that a resume would continue.
    """
    needed = [
        trial.trial_id
        for trial in result.ended
        if trial.origin == "default" or same_point(trial.settings, result.best.point)
    ]
    kept = {*needed, *unfinished}
    for trial in result.ended:
        if trial.trial_id not in kept:
            shutil.rmtree(folder / trial.trial_id, ignore_errors=True)


def _best(trial: Trial, folder: Path) -> tuple[float, int] | None:
    """Return the best DSC of the epochs whose checkpoint exists, and its epoch; checkpoints are written atomically."""
    epochs = [
        (dsc, epoch) for epoch, dsc in trial.curve(METRIC) if checkpoint_path(folder / trial.trial_id, epoch).is_dir()
    ]
    return max(epochs, key=lambda each: (each[0], -each[1]), default=None)


def _result(trial: Trial, dsc: float, epoch: int, folder: Path) -> TrialResult:
    path = checkpoint_path(folder / trial.trial_id, epoch)
    return TrialResult(trial.trial_id, trial.settings, trial.origin, trial.ending, len(trial.epochs), dsc, epoch, path)


def _sound(path: Path) -> bool:
    try:
        Checkpoint.load(path)
    except GtvrayError:
        return False
    return True
