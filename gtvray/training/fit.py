"""The training loop: a generator that gives a report, and leaves a checkpoint, after every epoch.

It is data-parallel when a torch process group exists, and single otherwise.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from gtvray.config import Config
from gtvray.data import CachedCase, PatchSampler
from gtvray.models import Checkpoint
from gtvray.training.loop import Loop
from gtvray.training.plan import check_plan
from gtvray.training.selection import selection_dsc
from gtvray.training.state import TrainingState, keep_checkpoints, newest_checkpoint
from gtvray.training.workers import barrier, rank


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
    loop = Loop(config, state, sampler)
    with ThreadPoolExecutor(1) as reader:
        while state.epoch < config.training.epochs:
            began = time.perf_counter()
            loss, busy_s, wait_s = loop.epoch(reader)
            dsc = selection_dsc(config, state.averaged_network(), scored, state.device)
            is_best = state.finish_epoch(dsc)
            checkpoint = folder / f"epoch-{state.epoch:05d}"
            if rank() == 0:
                state.checkpoint().save(checkpoint)
                keep_checkpoints(folder, best=state.best_epoch)
            barrier()
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
