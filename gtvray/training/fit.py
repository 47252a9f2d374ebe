"""The training loop: a generator that yields a report, and leaves a checkpoint, after every epoch.

It is data-parallel if a torch process group exists, and runs in a single process otherwise. A checkpoint is written
while the next epoch runs; a training that is killed in between resumes from the previous one, with the same results.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from gtvray.config import Config
from gtvray.data import CachedCase, PatchSampler, nearest_copies
from gtvray.failpoints import failpoint
from gtvray.models import Checkpoint
from gtvray.runtime import log_fields
from gtvray.training.checkpoints import CheckpointWriter, Start, checkpoint_path, decide_start
from gtvray.training.compilation import compile_mode, prefers_channels_last
from gtvray.training.cpu import freed_memory_kept
from gtvray.training.execution import mean_over_workers, numeric_settings, rank, training_device, training_precision
from gtvray.training.fence import names_of
from gtvray.training.loop import EpochResult, Loop
from gtvray.training.memory import check_memory, device_bytes
from gtvray.training.plan import check_plan
from gtvray.training.reader import BatchReader
from gtvray.training.recovery import epoch_with_retries, memory_errors
from gtvray.training.selection import selection_dsc
from gtvray.training.state import TrainingState

# The values of a report that are logged as metrics of its epoch.
EPOCH_METRICS = (
    "train_loss",
    "selection_dsc",
    "best_dsc",
    "lr",
    "patches_per_s",
    "data_wait_share",
    "seconds",
    "retries",
)
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class EpochReport:
    """Measurements of one epoch; `EPOCH_METRICS` names those that are logged.

    Attributes:
        epoch: number of completed epochs, from 1.
        epochs: planned number of epochs.
        train_loss: mean over the epoch's steps.
        selection_dsc: mean DSC of the averaged weights over the selection cases, on the prepared grid.
        best_dsc: the highest of these so far.
        lr: learning rate of the last step.
        patches_per_s: over all workers, in the time of the steps alone.
        data_wait_share: share of that time spent waiting for patches.
        seconds: wall-clock time of the epoch with selection.
        retries: restarts of an epoch at a lower rate, since the beginning.
        checkpoint: folder of the epoch's checkpoint. It is complete when the next report is yielded or the generator is
            closed; that of the last epoch is complete when the report is yielded.
        best_checkpoint: folder of the best epoch's checkpoint.
        notes: incidents since the last report, and how they were handled.
        case_dsc: DSC of each selection case, in order; empty if a checkpoint of an earlier version has none.
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
    case_dsc: Sequence[float] = ()

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def fit(
    config: Config,
    train: Sequence[CachedCase],
    selection: Sequence[CachedCase],
    folder: Path,
    *,
    resume: Path | None = None,
    start: Start | None = None,
    known_epoch: int | None = None,
) -> Iterator[EpochReport]:
    """Train, and yield one report per epoch.

    Args:
        config: all settings.
        train: prepared training cases.
        selection: prepared cases that compare epochs and trials.
        folder: for checkpoints; shared by all workers.
        resume: a checkpoint to resume from; by default the newest intact one in `folder`, if any.
        start: starting point decided once for all workers, which several workers need; replaces `resume`.
        known_epoch: last epoch whose report the caller has received; reports of later epochs in the checkpoint are
            yielded again. None means the epoch of the checkpoint, so that no report is repeated.

    Raises:
        ConfigError, DataError: the plan cannot work, or does not fit into the memory of the device.
        InputError: `folder` cannot be written to.
        TrainingError: the loss or gradient stays non-finite at lower learning rates, or every checkpoint is damaged.
        ResourceError: the disk is full, memory is exhausted, or torch sees no GPU although one is requested.
    """
    called = time.perf_counter()
    check_plan(config, train, selection)
    # Initialising a GPU takes memory, which other processes may have used up.
    with memory_errors(config):
        check_memory(config, device_bytes(config))
    torch.set_num_threads(config.training.cpus_per_worker)
    device = training_device(config)
    with ExitStack() as stack:
        start, checkpoint = decide_start(folder, resume) if start is None else (start, start.load())
        stack.enter_context(log_fields(**names_of(folder, start.attempt), rank=rank()))
        writer = stack.enter_context(CheckpointWriter(folder, start.attempt if rank() == 0 else None))
        stack.enter_context(memory_errors(config))
        stack.enter_context(numeric_settings(config, device))
        state = TrainingState.build(config)
        notes = _restore(state, start, checkpoint)
        for entry in state.history[state.epoch if known_epoch is None else known_epoch :]:
            yield _report(entry, folder, state.best_epoch)
        if device.type == "cuda":
            _log_gpu(config, device)
        train = nearest_copies(train, config.cache)
        scored = nearest_copies(selection[: config.training.selection_cases], config.cache)
        patches_on = device if config.augmentation.on_gpu else "cpu"
        sampler = PatchSampler(train, config.training, config.preprocessing, config.augmentation, patches_on)
        reader = stack.enter_context(BatchReader(sampler, device, config.training.cpus_per_worker))
        loop = Loop(config, state)
        checkpoint = state.checkpoint()
        while state.epoch < state.epochs:
            began = time.perf_counter()
            with freed_memory_kept() if device.type == "cpu" else nullcontext():
                result, retried = epoch_with_retries(loop, state, checkpoint, reader)
            case_dsc = selection_dsc(config, state.averaged_network(), scored, state.device)
            state.finish_epoch(float(case_dsc.mean()))
            writer.wait()
            if state.epoch == 1:
                now = time.perf_counter()
                state.plan_epochs(mean_over_workers(now - called), mean_over_workers(now - began))
            entry = _entry(state, result, case_dsc, [*notes, *retried], time.perf_counter() - began)
            state.history.append(entry)
            checkpoint, notes = state.checkpoint(), []
            writer.start(checkpoint, state.epoch, state.best_epoch)
            if state.epoch == state.epochs:
                writer.wait()
            failpoint("training.before_report", rank())
            yield _report(entry, folder, state.best_epoch)


def _restore(state: TrainingState, start: Start, checkpoint: Checkpoint | None) -> list[str]:
    """Restore the state from a checkpoint, if there is one; returns notes for the next report."""
    if checkpoint is not None:
        state.restore(checkpoint)
        if not start.has_best:
            state.forget_best()
    return [f"damaged checkpoint {name} skipped, resumed from epoch {state.epoch}" for name in start.damaged]


def _log_gpu(config: Config, device: torch.device) -> None:
    _log.info(
        "training on %s: %s, compile %s, channels %s, %s",
        torch.cuda.get_device_name(device),
        str(training_precision(config)).removeprefix("torch."),
        compile_mode(config) or "off",
        "last" if prefers_channels_last(config) else "first",
        "deterministic" if config.training.deterministic else "cuDNN benchmark",
    )


def _entry(
    state: TrainingState, result: EpochResult, case_dsc: NDArray[np.float64], notes: list[str], seconds: float
) -> dict[str, Any]:
    """The part of a report that a checkpoint keeps: everything but paths."""
    training = state.config.training
    steps_s = max(result.seconds, 1e-9)
    return {
        "epoch": state.epoch,
        "epochs": state.epochs,
        "train_loss": result.loss,
        "selection_dsc": float(case_dsc.mean()),
        "best_dsc": state.best_dsc,
        "lr": float(state.optimizer.param_groups[0]["lr"]),
        "patches_per_s": training.steps_per_epoch * training.batch_size / steps_s,
        "data_wait_share": result.waited_s / steps_s,
        "seconds": seconds,
        "retries": state.retries,
        "notes": "; ".join(notes),
        "case_dsc": [round(float(value), 6) for value in case_dsc],
    }


def _report(entry: dict[str, Any], folder: Path, best: int) -> EpochReport:
    paths = [str(checkpoint_path(folder, epoch)) for epoch in (entry["epoch"], best)]
    return EpochReport(**entry, checkpoint=paths[0], best_checkpoint=paths[1])
