"""A trial: one epoch per `step()`, in an actor that is reused by the next trial.

With one worker, `step()` runs `fit` inside the trial's own actor, so Tune owns all of its resources and a stopped trial
leaves nothing behind. With more workers, the same reports come from Ray Train.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray import tune

from gtvray.config import Config, with_dotted
from gtvray.training import EpochReport, Workers, fit, fit_distributed
from gtvray.tuning.cost import measure_cost
from gtvray.tuning.folds import FoldCases, fold_number
from gtvray.tuning.pins import pin_checkpoint, take_over


@dataclass(frozen=True)
class TrialContext:
    """Data shared by all trials of a sweep.

    Attributes:
        config: settings before the point of a trial is applied.
        folds: prepared cases by fold.
        folder: contains a folder per trial, named by its id, with its checkpoints.
        pin: whether to pin checkpoints that other trials may copy.
        objectives: names of the objectives of the sweep.
    """

    config: Config
    folds: Sequence[FoldCases]
    folder: Path
    pin: bool = False
    objectives: tuple[str, ...] = ()


class SegmentationTrial(tune.Trainable):  # type: ignore[misc]  # Ray ships no types
    """A training as a Ray Tune trainable."""

    def setup(self, config: dict[str, Any], context: TrialContext) -> None:
        """Set up the actor; called once."""
        self._context = context
        self._cost: dict[str, float] = {}
        self._epochs: Iterator[EpochReport] | None = None
        self._workers = Workers()
        self._point = config
        # Last epoch known to have been reported. Later epochs in a checkpoint are reported again, because their reports
        # may have been lost.
        self._known_epoch = 0

    def step(self) -> dict[str, Any]:
        """Train one epoch."""
        config = self._config()
        if self._epochs is None:
            self._cost = measure_cost(config, self._context.objectives)
            self._epochs = self._begin(config)
        report = next(self._epochs)
        self._known_epoch = report.epoch
        return {**report.as_dict(), **self._cost, "done": report.epoch >= config.training.epochs}

    def save_checkpoint(self, checkpoint_dir: str) -> dict[str, Any]:
        """Return a pointer to an epoch of the trial, whose checkpoint is pinned if other trials may take it over.

        It names the trial instead of a path, so that it stays valid after the workspace was moved.
        """
        if self._context.pin and self._known_epoch:
            pin_checkpoint(self._folder(), self._known_epoch)
        return {"trial": str(self.trial_id), "known_epoch": self._known_epoch}

    def load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Resume from an earlier state of this trial, or take over the pinned checkpoint of another trial."""
        self._close()
        self._known_epoch = checkpoint["known_epoch"]
        if checkpoint["trial"] != str(self.trial_id):
            take_over(self._context.folder / checkpoint["trial"], self._folder(), checkpoint["known_epoch"])

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Switch to another trial in the same process."""
        self._close()
        self._point, self._known_epoch = new_config, 0
        return True

    def cleanup(self) -> None:
        """Release resources before the actor ends."""
        self._close()
        self._workers.end()

    def _config(self) -> Config:
        return with_dotted(self._context.config, self._point, "trial")

    def _folder(self) -> Path:
        return self._context.folder / str(self.trial_id)

    def _begin(self, config: Config) -> Iterator[EpochReport]:
        # The last report is always repeated: Tune may have been killed before it ended the trial.
        known = min(self._known_epoch, config.training.epochs - 1)
        fold = self._context.folds[fold_number(self._context.config, config, self._context.folds)]
        cases = (fold.train, fold.selection)
        if config.training.num_workers == 1:
            return fit(config, *cases, self._folder(), known_epoch=known)
        return fit_distributed(config, *cases, self._folder(), known_epoch=known, workers=self._workers)

    def _close(self) -> None:
        # Closing the generator stops its reader thread, or its workers.
        if self._epochs is not None and hasattr(self._epochs, "close"):
            self._epochs.close()
        self._epochs = None
