"""The steps of an epoch.

A sample's randomness hangs on its global number alone, and the gradient is the mean over the patches of all workers,
so two workers with half the batch each do what one does.
"""

from __future__ import annotations

import math
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from gtvray.config import Config
from gtvray.data import PatchSampler
from gtvray.errors import TrainingError
from gtvray.failpoints import failpoint
from gtvray.training.execution import compiles
from gtvray.training.gradients import Gradients
from gtvray.training.optimizers import learning_rate
from gtvray.training.state import TrainingState
from gtvray.training.workers import mean_over_workers, rank, world


class DivergedError(TrainingError):
    """A step whose loss or gradient is no number; the weights are as they were before it."""


class Loop:
    """The steps of an epoch; one batch is read ahead while another is learned from."""

    def __init__(self, config: Config, state: TrainingState, sampler: PatchSampler) -> None:
        self._training, self._optimizing = config.training, config.optimizer
        self._state, self._sampler = state, sampler
        self._gradients = Gradients(config, state.network, state.scaler)
        if compiles(config):
            state.network.compile()

    def epoch(self, reader: ThreadPoolExecutor) -> tuple[float, float, float]:
        """Run the next epoch's steps.

        Returns:
            mean loss over all workers, seconds, and of these the seconds spent waiting for patches.

        Raises:
            DivergedError: the loss or the gradient is no number, at the same step on every worker.
        """
        first = self._state.epoch * self._training.steps_per_epoch
        steps = range(first, first + self._training.steps_per_epoch)
        began, waited, losses = time.perf_counter(), 0.0, []
        self._state.network.train()
        ahead = reader.submit(self._sampler.batch, self._numbers(first))
        for step in steps:
            asked = time.perf_counter()
            images, masks = ahead.result()
            waited += time.perf_counter() - asked
            if step + 1 < steps.stop:
                ahead = reader.submit(self._sampler.batch, self._numbers(step + 1))
            losses.append(self._step(step, images, masks))
        loss = mean_over_workers(float(np.mean(losses)))
        if not math.isfinite(loss):
            raise _diverged(steps.stop - 1, f"mean loss {loss:g}")
        return loss, time.perf_counter() - began, waited

    def _step(self, step: int, images: torch.Tensor, masks: torch.Tensor) -> float:
        state = self._state
        failpoint("training.before_step", rank())
        total = state.epochs * self._training.steps_per_epoch
        rate = learning_rate(self._optimizing, step, total) * state.lr_factor
        for group in state.optimizer.param_groups:
            group["lr"] = rate
        value = self._gradients.compute(self._numbers(step), images, masks, step / total)
        state.scaler.unscale_(state.optimizer)
        norm = torch.nn.utils.clip_grad_norm_(state.network.parameters(), self._optimizing.clip_norm)
        # A loss may be finite and its slope not; one step along it, and every weight is NaN. Workers have losses of
        # their own but share the gradient: it alone decides, so that all of them turn back together.
        # In fp16 the factor of the loss may have been too large; the scaler leaves out the step and halves it.
        if not math.isfinite(norm) and state.scaler.get_scale() <= 1:
            raise _diverged(step, f"loss {value:g}, gradient norm {float(norm):g}")
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
    return DivergedError("the loss is not a number any more", where=f"step {step}", found=found)
