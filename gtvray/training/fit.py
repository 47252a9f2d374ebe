"""The training loop: a generator that gives a report, and leaves a checkpoint, after every epoch.

It is data-parallel when a torch process group exists, and single otherwise. The checkpoint is written beside the steps
of the next epoch; whoever is killed meanwhile goes on from the one before, to the same figures.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from gtvray.config import Config
from gtvray.data import CachedCase, PatchSampler
from gtvray.failpoints import failpoint
from gtvray.models import Checkpoint
from gtvray.training.checkpoints import CheckpointWriter, checkpoint_path, newest_checkpoint
from gtvray.training.cpu import freed_memory_kept
from gtvray.training.loop import Loop
from gtvray.training.plan import check_plan
from gtvray.training.recovery import epoch_with_retries, memory_errors
from gtvray.training.selection import selection_dsc
from gtvray.training.state import TrainingState
from gtvray.training.workers import mean_over_workers, rank


@dataclass(frozen=True)
class EpochReport:
    """One epoch in figures.

    Attributes:
        epoch: epochs done, from 1.
        epochs: how many there will be.
        train_loss: mean over the epoch's steps.
        selection_dsc: mean DSC of the averaged weights over the selection cases, on the prepared grid.
        best_dsc: the best of these so far.
        lr: learning rate at the end.
        patches_per_s: over all workers, training time only.
        data_wait_share: share of the training time spent waiting for patches.
        seconds: wall-clock of the epoch with selection.
        retries: how often, since the beginning, an epoch was begun again at a lower rate.
        checkpoint: folder of the epoch's checkpoint. It is whole once the next report is there, or this is the last,
            or the generator is closed.
        best_checkpoint: folder of the best one.
        notes: what went wrong in this epoch, or on the way to it, and what was done about it.
    """

    epoch: int
    epochs: int
    train_loss: float
    selection_dsc: float
    best_dsc: float
    lr: float
    patches_per_s: float
    data_wait_share: float
    seconds: float
    retries: int
    checkpoint: str
    best_checkpoint: str
    notes: str = ""

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
    told: int | None = None,
) -> Iterator[EpochReport]:
    """Train, one report an epoch.

    Args:
        config: everything.
        train: prepared training cases.
        selection: prepared cases that compare epochs and trials.
        folder: where checkpoints go; shared by all workers.
        resume: a checkpoint to go on from; without it the newest sound one in `folder`, if any.
        told: the last epoch whose report the caller has; reports of later ones that the checkpoint knows of are given
            again. None is all of them.

    Raises:
        ConfigError, DataError: the plan cannot work.
        InputError: nothing can be written to `folder`.
        TrainingError: the loss is no number, also at a lower rate; or every checkpoint is damaged.
        ResourceError: the disk is full, or memory is out.
    """
    check_plan(config, train, selection)
    torch.set_num_threads(config.training.cpus_per_worker)
    called = time.perf_counter()
    with (
        CheckpointWriter(folder, active=rank() == 0) as writer,
        ThreadPoolExecutor(1) as reader,
        memory_errors(config),
    ):
        state = TrainingState.build(config)
        notes = _go_on(state, folder, resume)
        for entry in state.history[state.epoch if told is None else told :]:
            yield _report(entry, folder, state.best_epoch)
        scored = selection[: config.training.selection_cases]
        device = state.device if config.augmentation.on_gpu else "cpu"
        sampler = PatchSampler(train, config.training, config.preprocessing, config.augmentation, device)
        loop = Loop(config, state, sampler)
        checkpoint = state.checkpoint()
        while state.epoch < state.epochs:
            began = time.perf_counter()
            with nullcontext() if config.training.use_gpu else freed_memory_kept():
                figures, retried = epoch_with_retries(loop, state, checkpoint, reader)
            dsc = selection_dsc(config, state.averaged_network(), scored, state.device)
            state.finish_epoch(dsc)
            writer.wait()
            if state.epoch == 1:
                now = time.perf_counter()
                state.plan_epochs(mean_over_workers(now - called), mean_over_workers(now - began))
            entry = _entry(state, figures, dsc, [*notes, *retried], time.perf_counter() - began)
            state.history.append(entry)
            checkpoint, notes = state.checkpoint(), []
            writer.start(checkpoint, state.epoch, state.best_epoch)
            if state.epoch == state.epochs:
                writer.wait()
            failpoint("training.before_report", rank())
            yield _report(entry, folder, state.best_epoch)


def _go_on(state: TrainingState, folder: Path, resume: Path | None) -> list[str]:
    """Restore the state from a checkpoint if there is one; returns what is to be told about it."""
    start, damaged = (Checkpoint.load(resume), []) if resume is not None else newest_checkpoint(folder)
    if start is not None:
        state.restore(start)
        if not checkpoint_path(folder, state.best_epoch).is_dir():
            state.forget_best()
    return [f"damaged checkpoint {name} passed over, gone on from epoch {state.epoch}" for name in damaged]


def _entry(
    state: TrainingState, figures: tuple[float, float, float], dsc: float, notes: list[str], seconds: float
) -> dict[str, Any]:
    """What a checkpoint remembers of a report: all but the places."""
    training = state.config.training
    loss, busy_s, wait_s = figures
    return {
        "epoch": state.epoch,
        "epochs": state.epochs,
        "train_loss": loss,
        "selection_dsc": dsc,
        "best_dsc": state.best_dsc,
        "lr": float(state.optimizer.param_groups[0]["lr"]),
        "patches_per_s": training.steps_per_epoch * training.batch_size / max(busy_s, 1e-9),
        "data_wait_share": wait_s / max(busy_s, 1e-9),
        "seconds": seconds,
        "retries": state.retries,
        "notes": "; ".join(notes),
    }


def _report(entry: dict[str, Any], folder: Path, best: int) -> EpochReport:
    places = [str(checkpoint_path(folder, epoch)) for epoch in (entry["epoch"], best)]
    return EpochReport(**entry, checkpoint=places[0], best_checkpoint=places[1])
