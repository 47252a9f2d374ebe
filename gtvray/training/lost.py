"""The reason a group of workers ended before its training did."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch.distributed as dist
from ray.exceptions import (
    LocalRayletDiedError,
    NodeDiedError,
    OutOfMemoryError,
    RayActorError,
    WorkerCrashedError,
)

from gtvray.config import Config
from gtvray.errors import FailureError, ResourceError, TrainingError

_CONTROLLER = -1
# Attributes in which Ray Train and Ray keep the error that an error reports.
_CAUSES = ("controller_failure", "health_check_failure", "_base_exc", "cause", "__cause__")


@dataclass(frozen=True)
class Lost:
    """The reason for a lost group.

    Attributes:
        reason: one line.
        is_memory: Ray ended a worker because its machine was running out of memory.
        is_resources: the workers were never started, for lack of free CPUs, GPUs or memory.
    """

    reason: str
    is_memory: bool = False
    is_resources: bool = False


@dataclass(frozen=True)
class _Kind:
    """A kind of loss, recognised by the class of an error or, where it has none of its own, by its message."""

    reason: str
    classes: tuple[type[BaseException], ...] = ()
    messages: tuple[str, ...] = ()
    is_memory: bool = False
    is_resources: bool = False

    def describes(self, error: BaseException) -> bool:
        """Whether the error is of this kind."""
        return isinstance(error, self.classes) or any(words in str(error).lower() for words in self.messages)


# The cause before its consequences: when a worker dies, the others only lose a connection. Ray reports the loss of an
# actor's machine by the class for any dead actor, and Gloo every fault as a RuntimeError.
_KINDS = (
    _Kind("Ray ended it because its machine was running out of memory", (OutOfMemoryError,), is_memory=True),
    _Kind("its machine was lost", (NodeDiedError, LocalRayletDiedError), ("node has died", "node died")),
    _Kind(
        "its process died: it crashed or was killed, possibly by the kernel for lack of memory",
        (RayActorError, WorkerCrashedError),
    ),
    _Kind(
        "the cluster had no free resources for its workers within training.resources_wait_s",
        messages=("startup timed out",),
        is_resources=True,
    ),
    _Kind("another worker did not answer within training.collective_timeout_s", messages=("timed out",)),
    _Kind(
        "the connection to another worker was lost",
        (dist.DistNetworkError, dist.DistBackendError),
        ("closed by peer", "reset by peer"),
    ),
)


def lost(error: BaseException) -> Lost:
    """Determine why a group ended.

    Args:
        error: raised by Ray Train's `fit`; it holds the errors of the workers by rank, or is the controller's.
    """
    failures = getattr(error, "worker_failures", None) or {_CONTROLLER: error}
    found = [(_weight(failure), rank) for rank, failure in failures.items()]
    weight, rank = min(found)
    who = f"worker {rank}" if rank != _CONTROLLER else "the training's controller"
    if weight < len(_KINDS):
        kind = _KINDS[weight]
        return Lost(f"{who}: {kind.reason}", kind.is_memory, kind.is_resources)
    lines = str(failures[rank]).strip().splitlines()
    return Lost(f"{who}: {lines[-1].strip() if lines else type(error).__name__}")


def lost_error(why: Lost, config: Config, epoch: int) -> FailureError:
    """Return the error for a training that has lost its workers too often, or could not start them.

    Args:
        why: the reason for the last loss.
        config: of the training.
        epoch: the last one reported.
    """
    training = config.training
    where = f"{training.num_workers} workers, after epoch {epoch} and {training.max_failures} restarts"
    if why.is_memory:
        return ResourceError(
            "out of memory",
            where=where,
            found=f"{why.reason}; training.batch_size={training.batch_size}",
            do="lower training.batch_size, training.patch_ijk or training.cpus_per_worker, or use more machines",
        )
    if why.is_resources:
        return ResourceError(
            "the cluster had no free resources for a training",
            where=f"{training.num_workers} workers, after epoch {epoch}",
            found=why.reason,
            do="see `ray status` for what uses the cluster, or raise training.resources_wait_s",
        )
    return TrainingError(
        "training on several workers failed",
        where=where,
        found=why.reason,
        do="see the worker's log under Ray's session folder; training.num_workers=1 runs without Ray Train",
    )


def _weight(failure: BaseException) -> int:
    """The first kind that describes a failure or one of its causes; past the last if there is none."""
    chain = list(_chain(failure))
    return next((n for n, kind in enumerate(_KINDS) if any(map(kind.describes, chain))), len(_KINDS))


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error, and the errors that it reports."""
    seen: set[int] = set()
    left = [error]
    while left:
        each = left.pop()
        if id(each) in seen:
            continue
        seen.add(id(each))
        yield each
        found = [getattr(each, name, None) for name in _CAUSES]
        left += [cause for cause in found if isinstance(cause, BaseException)]
