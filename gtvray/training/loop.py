"""The steps of an epoch.

A sample's randomness hangs on its global number alone, and a loss is a mean over samples, so two workers with half the
batch each see what one sees.
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
from gtvray.models import build_loss
from gtvray.training.plan import training_precision
from gtvray.training.state import TrainingState
from gtvray.training.workers import mean_over_workers, rank, world


class DivergedError(TrainingError):
    """A step whose loss or gradient is no number; the weights are as they were before it."""


class Loop:
    """The steps of an epoch; one batch is read ahead while another is learned from."""

    def __init__(self, config: Config, state: TrainingState, sampler: PatchSampler) -> None:
        self._training, self._optimizing = config.training, config.optimizer
        self._state, self._sampler = state, sampler
        self._loss = build_loss(config.loss)
        self._dtype = training_precision(config)
        self._network: torch.nn.Module = state.network
        if world() > 1:
            # DynUNet names most of its blocks twice; only those that take part in the forward have gradients.
            self._network = torch.nn.parallel.DistributedDataParallel(state.network)

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
        self._network.train()
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
        self._set_rate(step)
        device = state.device
        with torch.autocast(device.type, self._dtype, enabled=self._dtype != torch.float32):
            logits = self._network(images.to(device, non_blocking=True))
        loss = self._loss(logits, masks.to(device, non_blocking=True))
        if failpoint("training.loss", rank()):
            loss = loss * math.nan
        value = float(loss.detach())
        state.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        norm = torch.nn.utils.clip_grad_norm_(state.network.parameters(), self._optimizing.clip_norm)
        # A loss may be finite and its slope not; one step along it, and every weight is NaN. Workers have losses of
        # their own but share the gradient: it alone decides, so that all of them turn back together.
        if not math.isfinite(norm):
            raise _diverged(step, f"loss {value:g}, gradient norm {float(norm):g}")
        state.optimizer.step()
        state.average(step)
        return value

    def _numbers(self, step: int) -> range:
        """Global sample numbers of this worker's share of a step."""
        local = self._training.batch_size // world()
        start = step * self._training.batch_size + rank() * local
        return range(start, start + local)

    def _set_rate(self, step: int) -> None:
        total = self._state.epochs * self._training.steps_per_epoch
        warmup = max(1, round(total * self._optimizing.warmup_share))
        share = (step + 1) / warmup if step < warmup else (1 - (step - warmup) / max(1, total - warmup)) ** 0.9
        for group in self._state.optimizer.param_groups:
            group["lr"] = self._optimizing.lr * share * self._state.lr_factor


def _diverged(step: int, found: str) -> DivergedError:
    return DivergedError("the loss is not a number any more", where=f"step {step}", found=found)
