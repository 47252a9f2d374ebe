"""A trial: one `step()` an epoch, its actor used again by the next trial.

With one worker `step()` advances `fit` inside the trial's own actor, so Tune owns all that the trial uses and a stopped
trial has nothing to leave behind. With more, the same reports come from Ray Train's workers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray import tune

from gtvray.config import Choice, Config, Range, with_dotted
from gtvray.data import CachedCase
from gtvray.training import EpochReport, fit, fit_distributed
from gtvray.tuning.space import decode


@dataclass(frozen=True)
class TrialContext:
    """What all trials of a sweep share.

    Attributes:
        config: the base every trial's point is laid over.
        space: the search space.
        train, selection: prepared cases.
        folder: each trial's checkpoints go to a folder of its id in here.
    """

    config: Config
    space: dict[str, Range | Choice]
    train: list[CachedCase]
    selection: list[CachedCase]
    folder: Path


class SegmentationTrial(tune.Trainable):  # type: ignore[misc]  # Ray ships no types
    """Ray Tune's view of a training."""

    def setup(self, config: dict[str, Any], context: TrialContext) -> None:
        """Called once an actor."""
        self._context = context
        self._epochs: Iterator[EpochReport] | None = None
        self._point = config
        self._resume: Path | None = None
        # The last epoch that Tune has heard of; None is all that the checkpoint to resume from knows of.
        self._told: int | None = 0

    def step(self) -> dict[str, Any]:
        """Train one epoch."""
        config = self._config()
        if self._epochs is None:
            self._epochs = self._begin(config)
        report = next(self._epochs)
        self._told = report.epoch
        return {**report.as_dict(), "done": report.epoch >= config.training.epochs}

    def save_checkpoint(self, checkpoint_dir: str) -> dict[str, Any]:
        """Return a pointer: the trial's folder holds the checkpoints themselves.

        The trial is named and not its path, so that the pointer holds after the workspace was moved.
        """
        return {"trial": str(self.trial_id), "told": self._told}

    def load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on from another state of this trial, or from another trial's."""
        self._close()
        # Sweeps from before the pointer named the trial have its folder, whose name is the same.
        trial = checkpoint["trial"] if "trial" in checkpoint else Path(checkpoint["folder"]).name
        self._told = checkpoint["told"]
        if trial != str(self.trial_id):
            newest = sorted((self._context.folder / trial).glob("epoch-*"))
            self._resume, self._told = newest[-1] if newest else None, None

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Become another trial in the same process."""
        self._close()
        self._point, self._resume, self._told = new_config, None, 0
        return True

    def cleanup(self) -> None:
        """Called before the actor ends."""
        self._close()

    def _config(self) -> Config:
        return with_dotted(self._context.config, decode(self._point, self._context.space), "trial")

    def _folder(self) -> Path:
        return self._context.folder / str(self.trial_id)

    def _begin(self, config: Config) -> Iterator[EpochReport]:
        run = fit if config.training.num_workers == 1 else fit_distributed
        # The last report is always given: Tune may have been killed before it had ended the trial.
        told = None if self._told is None else min(self._told, config.training.epochs - 1)
        return run(
            config, self._context.train, self._context.selection, self._folder(), resume=self._resume, known_epoch=told
        )

    def _close(self) -> None:
        # Closing the generator ends its reader thread, or its workers.
        if self._epochs is not None and hasattr(self._epochs, "close"):
            self._epochs.close()
        self._epochs = None
