"""The training loop: a generator that gives a report, and leaves a checkpoint, after every epoch.

It is data-parallel when a torch process group exists, and single otherwise. A sample's randomness hangs on its global
number alone, and a loss is a mean over samples, so two workers with half the batch each see what one sees.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from gtvray.config import Config
from gtvray.data import CachedCase, PatchSampler
from gtvray.errors import TrainingError
from gtvray.models import Checkpoint, build_loss
from gtvray.training.plan import check_plan, training_precision
from gtvray.training.selection import selection_dsc
from gtvray.training.state import TrainingState, keep_checkpoints, newest_checkpoint


@dataclass(frozen=True)
class EpochReport:
    """One epoch in figures.

    Attributes:
        epoch: epochs done, from 1.
        train_loss: mean over the epoch's steps.
        selection_dsc: mean DSC of the averaged weights over the selection cases, on the prepared grid.
        best_dsc: the best of these so far.
        lr: learning rate at the end.
        patches_per_s: over all workers, training time only.
        data_wait_share: share of the training time spent waiting for patches.
        seconds: wall-clock of the epoch with selection and checkpoint.
        checkpoint: folder of the checkpoint written.
        best_checkpoint: folder of the best one.
    """

    epoch: int
    train_loss: float
    selection_dsc: float
    best_dsc: float
    lr: float
    patches_per_s: float
    data_wait_share: float
    seconds: float
    checkpoint: str
    best_checkpoint: str

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    def metrics(self) -> dict[str, float]:
        """The figures alone, for tracking."""
        return {name: float(value) for name, value in asdict(self).items() if not isinstance(value, str)}


def fit(
    config: Config,
    train: Sequence[CachedCase],
    selection: Sequence[CachedCase],
    folder: Path,
    *,
    resume: Path | None = None,
) -> Iterator[EpochReport]:
    """Train, one report an epoch.

    Args:
        config: everything.
        train: prepared training cases.
        selection: prepared cases that compare epochs and trials.
        folder: where checkpoints go; shared by all workers.
        resume: a checkpoint to go on from; without it the newest sound one in `folder`, if any.

    Raises:
        ConfigError, DataError: the plan cannot work.
        TrainingError: the loss is no longer a number.
    """
    check_plan(config, train, selection)
    torch.set_num_threads(config.training.cpus_per_worker)
    state = TrainingState.build(config)
    start = Checkpoint.load(resume) if resume is not None else newest_checkpoint(folder)
    if start is not None:
        state.restore(start)
        if not (folder / f"epoch-{state.best_epoch:05d}").is_dir():
            state.forget_best()
    scored = selection[: config.training.selection_cases]
    device = state.device if config.augmentation.on_gpu else "cpu"
    sampler = PatchSampler(train, config.training, config.preprocessing, config.augmentation, device)
    loop = _Loop(config, state, sampler)
    with ThreadPoolExecutor(1) as reader:
        while state.epoch < config.training.epochs:
            began = time.perf_counter()
            loss, busy_s, wait_s = loop.epoch(reader)
            dsc = selection_dsc(config, state.averaged_network(), scored, state.device)
            is_best = state.finish_epoch(dsc)
            checkpoint = folder / f"epoch-{state.epoch:05d}"
            if _rank() == 0:
                state.checkpoint().save(checkpoint)
                keep_checkpoints(folder, best=state.best_epoch)
            _barrier()
            yield EpochReport(
                epoch=state.epoch,
                train_loss=loss,
                selection_dsc=dsc,
                best_dsc=dsc if is_best else state.best_dsc,
                lr=float(state.optimizer.param_groups[0]["lr"]),
                patches_per_s=config.training.steps_per_epoch * config.training.batch_size / max(busy_s, 1e-9),
                data_wait_share=wait_s / max(busy_s, 1e-9),
                seconds=time.perf_counter() - began,
                checkpoint=str(checkpoint),
                best_checkpoint=str(folder / f"epoch-{state.best_epoch:05d}"),
            )


class _Loop:
    """The steps of an epoch; one batch is read ahead while another is learned from."""

    def __init__(self, config: Config, state: TrainingState, sampler: PatchSampler) -> None:
        self._training, self._optimizing = config.training, config.optimizer
        self._state, self._sampler = state, sampler
        self._loss = build_loss(config.loss)
        self._dtype = training_precision(config)
        self._network: torch.nn.Module = state.network
        if _world() > 1:
            # DynUNet names most of its blocks twice; only those that take part in the forward have gradients.
            self._network = torch.nn.parallel.DistributedDataParallel(state.network)

    def epoch(self, reader: ThreadPoolExecutor) -> tuple[float, float, float]:
        """Run the next epoch's steps.

        Returns:
            mean loss over all workers, seconds, and of these the seconds spent waiting for patches.
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
        loss = _mean_over_workers(float(np.mean(losses)))
        return loss, time.perf_counter() - began, waited

    def _step(self, step: int, images: torch.Tensor, masks: torch.Tensor) -> float:
        state = self._state
        self._set_rate(step)
        device = state.device
        with torch.autocast(device.type, self._dtype, enabled=self._dtype != torch.float32):
            logits = self._network(images.to(device, non_blocking=True))
        loss = self._loss(logits, masks.to(device, non_blocking=True))
        value = float(loss.detach())
        state.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        norm = torch.nn.utils.clip_grad_norm_(state.network.parameters(), self._optimizing.clip_norm)
        # A loss may be finite and its slope not; one step along it, and every weight is NaN.
        if not (math.isfinite(value) and math.isfinite(norm)):
            raise TrainingError(
                "the loss is not a number any more",
                where=f"step {step}",
                found=f"loss {value:g}, gradient norm {float(norm):g}",
                do="lower optimizer.lr or optimizer.clip_norm, and start in another folder",
            )
        state.optimizer.step()
        state.average(step)
        return value

    def _numbers(self, step: int) -> range:
        """Global sample numbers of this worker's share of a step."""
        local = self._training.batch_size // _world()
        start = step * self._training.batch_size + _rank() * local
        return range(start, start + local)

    def _set_rate(self, step: int) -> None:
        total = self._training.epochs * self._training.steps_per_epoch
        warmup = max(1, round(total * self._optimizing.warmup_share))
        share = (step + 1) / warmup if step < warmup else (1 - (step - warmup) / max(1, total - warmup)) ** 0.9
        for group in self._state.optimizer.param_groups:
            group["lr"] = self._optimizing.lr * share


def _rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def _world() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def _barrier() -> None:
    if dist.is_initialized():
        dist.barrier()


def _mean_over_workers(value: float) -> float:
    if not dist.is_initialized():
        return value
    total = torch.tensor(value, dtype=torch.float64)
    dist.all_reduce(total)
    return float(total) / dist.get_world_size()
