"""What a training does about steps that lead nowhere, and about memory that is not there."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import torch

from gtvray.config import Config
from gtvray.errors import ResourceError, TrainingError
from gtvray.models import Checkpoint
from gtvray.training.loop import DivergedError, Loop
from gtvray.training.state import TrainingState

# How torch's allocators, oneDNN and the C++ library say it, where they do so by a RuntimeError.
_MEMORY_WORDS = ("can't allocate memory", "out of memory", "bad_alloc", "failed to allocate", "could not allocate")
_log = logging.getLogger(__name__)


def epoch_with_retries(
    loop: Loop, state: TrainingState, good: Checkpoint, reader: ThreadPoolExecutor
) -> tuple[tuple[float, float, float], list[str]]:
    """Run an epoch; when its loss is no number, again from its beginning at a lower rate.

    Every worker sees the same gradients, so all of them turn back at the same step.

    Args:
        loop: runs the epoch.
        state: what it changes.
        good: the state at the beginning of the epoch.
        reader: the thread that reads patches.

    Returns:
        as `Loop.epoch`; and what was done about it, a line each.

    Raises:
        TrainingError: the loss is no number, and the retries are used up.
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
            state.restore(good)
            state.retries, state.lr_factor = retries, factor
            notes.append(f"{error.what} at {error.fields['where']}: epoch begun again with {factor:g} of the rate")
            _log.warning("%s", notes[-1])


@contextmanager
def memory_errors(config: Config) -> Iterator[None]:
    """Turn every way of saying that memory is out into one that says what to change.

    Raises:
        ResourceError: memory is out.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not _is_memory(error):
            raise
        training = config.training
        place = "the GPU" if isinstance(error, torch.OutOfMemoryError) else "this machine"
        raise ResourceError(
            f"out of memory on {place}",
            where=f"training, {training.num_workers} workers",
            found=f"training.batch_size={training.batch_size}, training.patch_ijk={list(training.patch_ijk)}",
            do="lower training.batch_size first, then training.patch_ijk, then the size of the network",
        ) from error


def _is_memory(error: MemoryError | RuntimeError) -> bool:
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return any(words in str(error).lower() for words in _MEMORY_WORDS)
