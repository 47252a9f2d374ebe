"""Recovery within a training: epochs whose loss diverges, and errors about memory."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from gtvray.config import Config
from gtvray.errors import ResourceError, TrainingError
from gtvray.inference import is_of_gpu, is_out_of_memory
from gtvray.models import Checkpoint
from gtvray.training.execution import training_precision
from gtvray.training.loop import DivergedError, EpochResult, Loop
from gtvray.training.reader import BatchReader
from gtvray.training.state import TrainingState

_log = logging.getLogger(__name__)


def epoch_with_retries(
    loop: Loop, state: TrainingState, start: Checkpoint, reader: BatchReader
) -> tuple[EpochResult, list[str]]:
    """Run an epoch; when its loss is not finite, run it again from its start at a lower learning rate.

    Every worker sees the same gradients, so all of them restart at the same step.

    Args:
        loop: runs the epoch.
        state: changed by it.
        start: the state at the start of the epoch.
        reader: of the batches.

    Returns:
        the epoch's result, and a note for each retry.

    Raises:
        TrainingError: the loss is not finite and the retries are used up.
    """
    training = state.config.training
    notes: list[str] = []
    while True:
        try:
            return loop.epoch(reader), notes
        except DivergedError as error:
            if state.retries >= training.nan_retries:
                raise TrainingError(
                    error.what,
                    where=f"{error.fields['where']}, after {state.retries} retries at a lower rate",
                    found=error.fields["found"],
                    do="lower optimizer.lr or optimizer.clip_norm, and start in another folder",
                ) from error
            retries, factor = state.retries + 1, state.lr_factor * training.nan_lr_factor
            state.restore(start)
            state.retries, state.lr_factor = retries, factor
            notes.append(f"{error.what} at {error.fields['where']}: epoch restarted at {factor:g} of the learning rate")
            _log.warning("%s", notes[-1])


@contextmanager
def memory_errors(config: Config) -> Iterator[None]:
    """Turn every out-of-memory error into one that names the settings to change.

    Raises:
        ResourceError: memory is exhausted.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        training = config.training
        found = f"training.batch_size={training.batch_size}, training.patch_ijk={list(training.patch_ijk)}"
        on_gpu = training.use_gpu and is_of_gpu(error)
        raise ResourceError(
            f"out of memory on {'the GPU' if on_gpu else 'this machine'}",
            where=f"training, {training.num_workers} workers",
            found=found + (_gpu_use(config) if on_gpu else ""),
            do=_remedy(config, on_gpu),
        ) from error


def _gpu_use(config: Config) -> str:
    try:
        precision = str(training_precision(config)).removeprefix("torch.")
        peak_gb = torch.cuda.max_memory_reserved() / 1e9
        total_gb = torch.cuda.mem_get_info()[1] / 1e9
    except RuntimeError:
        # Other processes have left no memory for this one's context.
        return ""
    return f", {precision}; {peak_gb:.1f} GB reserved at most of the GPU's {total_gb:.1f} GB"


def _remedy(config: Config, on_gpu: bool) -> str:
    """The settings to change, the least harmful first."""
    training = config.training
    steps = ["lower training.batch_size", "lower training.patch_ijk", "lower network.size"]
    if on_gpu and training.micro_batch != 1 and training.batch_size > training.num_workers:
        steps.insert(0, "set training.micro_batch=1")
    if on_gpu and training.precision == "fp32":
        steps.insert(0, "set training.precision=auto")
    return ", or ".join(steps)
