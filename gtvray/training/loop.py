"""The steps of an epoch.

A sample's randomness follows from its global number alone, and the gradient is the mean over the patches of all
workers, so two workers with half the batch each compute what one worker does.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import numpy as np
import torch

from gtvray.config import Config
from gtvray.errors import TrainingError
from gtvray.failpoints import failpoint
from gtvray.training.execution import mean_over_workers, rank, world
from gtvray.training.gradients import Gradients
from gtvray.training.optimizers import learning_rate
from gtvray.training.reader import BatchReader
from gtvray.training.state import TrainingState


class DivergedError(TrainingError):
    """A step with a non-finite gradient, before which it stops, or an epoch with a non-finite mean loss."""


@dataclass(frozen=True)
class EpochResult:
    """Measurements of an epoch's steps.

    Attributes:
        loss: mean over steps and workers.
        seconds: wall-clock time of the steps.
        waited_s: of these, the seconds spent waiting for patches.
    """

    loss: float
    seconds: float
    waited_s: float


class Loop:
    """Runs the steps of an epoch."""

    def __init__(self, config: Config, state: TrainingState) -> None:
        self._training, self._optimizing = config.training, config.optimizer
        self._state = state
        self._gradients = Gradients(config, state.network, state.scaler)

    def epoch(self, reader: BatchReader) -> EpochResult:
        """Run the next epoch's steps.

        Raises:
            DivergedError: the loss or the gradient is not finite, at the same step on every worker.
        """
        first = self._state.epoch * self._training.steps_per_epoch
        steps = range(first, first + self._training.steps_per_epoch)
        began, waited_s, losses = time.perf_counter(), 0.0, []
        self._state.network.train()
        for step, batch in zip(steps, reader.batches(self._numbers, steps), strict=True):
            waited_s += batch.waited_s
            losses.append(self._step(step, batch.images, batch.masks))
        loss = mean_over_workers(float(np.mean(losses)))
        if not math.isfinite(loss):
            raise _diverged(steps.stop - 1, f"mean loss {loss:g}")
        return EpochResult(loss, time.perf_counter() - began, waited_s)

    def _step(self, step: int, images: torch.Tensor, masks: torch.Tensor) -> float:
        state = self._state
        failpoint("training.before_step", rank())
        total = state.epochs * self._training.steps_per_epoch
        rate = learning_rate(self._optimizing, step, total) * state.lr_factor
        for group in state.optimizer.param_groups:
            group["lr"] = rate
        loss = self._gradients.compute(self._numbers(step), images, masks, step / total)
        state.scaler.unscale_(state.optimizer)
        # The only synchronisation with the GPU in a step: the weights must not be updated before the gradient is known
        # to be finite.
        norm = float(torch.nn.utils.clip_grad_norm_(state.network.parameters(), self._optimizing.clip_norm))
        value = float(loss)
        # A finite loss may have a gradient that is not, and one step along it makes every weight NaN. Workers have
        # losses of their own but share the gradient, so it alone decides and all of them stop at the same step.
        # In fp16 the factor of the loss may have been too large; the scaler then skips the step and halves it.
        if not math.isfinite(norm) and state.scaler.get_scale() <= 1:
            raise _diverged(step, f"loss {value:g}, gradient norm {norm:g}")
        state.scaler.step(state.optimizer)
        state.scaler.update()
        state.average(step)
        return value

    def _numbers(self, step: int) -> range:
        """Global sample numbers of this worker's share of a step."""
        local = self._training.batch_size // world()
        start = step * self._training.batch_size + rank() * local
        return range(start, start + local)


def _diverged(step: int, found: str) -> DivergedError:
    return DivergedError("the loss or its gradient is not finite", where=f"step {step}", found=found)
