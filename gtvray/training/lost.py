"""Why a group of workers ended before its training: what Ray says of it, in a line."""

from __future__ import annotations

from dataclasses import dataclass

from gtvray.config import Config
from gtvray.errors import FailureError, ResourceError, TrainingError


@dataclass(frozen=True)
class Lost:
    """One way to lose a group.

    Attributes:
        reason: what happened, in a few words.
        is_memory: Ray ended a worker since its machine was running out of memory.
    """

    reason: str
    is_memory: bool = False


# What Ray and torch say, from the most telling to the least: when a worker dies, the others only lose a connection.
_SAID: tuple[tuple[str, str, bool], ...] = (
    ("running low on memory", "Ray ended it, since its machine was running out of memory", True),
    ("its node has died", "its machine was lost", False),
    ("node died", "its machine was lost", False),
    ("process has died", "its process died: killed, by the kernel for want of memory perhaps, or crashed", False),
    ("actor died", "its process died: killed, by the kernel for want of memory perhaps, or crashed", False),
    ("timed out", "another worker did not answer within training.collective_timeout_s", False),
    ("closed by peer", "the connection to another worker was lost", False),
    ("reset by peer", "the connection to another worker was lost", False),
)


def lost(error: BaseException) -> Lost:
    """What became of a group.

    Args:
        error: what Ray Train's `fit` raised: of its workers, by rank, or of itself.
    """
    failures = getattr(error, "worker_failures", None) or {-1: error}
    told = [(_weight(str(failure)), rank, str(failure)) for rank, failure in failures.items()]
    weight, rank, text = min(told)
    who = f"worker {rank}" if rank >= 0 else "the training's controller"
    if weight < len(_SAID):
        return Lost(f"{who}: {_SAID[weight][1]}", _SAID[weight][2])
    lines = text.strip().splitlines()
    return Lost(f"{who}: {lines[-1].strip() if lines else type(error).__name__}")


def explain(why: Lost, config: Config, epoch: int) -> FailureError:
    """The error that ends a training which has lost its workers once too often.

    Args:
        why: how the last group was lost.
        config: of the training.
        epoch: the last one reported.
    """
    training = config.training
    where = f"{training.num_workers} workers, after epoch {epoch} and {training.max_failures} new beginnings"
    if why.is_memory:
        return ResourceError(
            "out of memory",
            where=where,
            found=f"{why.reason}; training.batch_size={training.batch_size}",
            do="lower training.batch_size, training.patch_ijk or training.cpus_per_worker, or use more machines",
        )
    return TrainingError(
        "training on several workers failed",
        where=where,
        found=why.reason,
        do="see the worker's log under Ray's session folder; training.num_workers=1 runs without Ray Train",
    )


def _weight(text: str) -> int:
    lowered = text.lower()
    return next((number for number, (words, *_) in enumerate(_SAID) if words in lowered), len(_SAID))
