"""Parallel trainings on the cluster, one actor each: the folds of a cross-validation, or a single training.

An actor runs `fit`, as a trial of a sweep does. Folds are isolated from each other's failures: an actor that dies is
replaced and resumes from its newest checkpoint, and an error ends its own fold only.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError

from gtvray.errors import GtvrayError, first_line
from gtvray.experiments.fold_plan import Fold
from gtvray.runtime import Needs, ResourcePlan
from gtvray.training import EpochReport, fit, fit_distributed

# An actor may be lost with its node or killed by the kernel; after three deaths without an epoch the fold fails.
_DEATHS = 2
_POLL_S = 1.0
_CLOSE_S = 120.0


class FoldListener(Protocol):
    """Receives the progress of folds."""

    def last(self, fold: Fold) -> int:
        """Return the last recorded epoch of a fold; 0 if there is none."""

    def epoch(self, fold: Fold, report: EpochReport) -> None:
        """Handle a completed epoch."""

    def lost(self, fold: Fold, reason: str) -> None:
        """Handle the replacement of an actor that died."""

    def ended(self, fold: Fold, reason: str | None) -> None:
        """Handle the end of a fold; `reason` is None if it was trained completely."""


def train_folds(folds: Sequence[Fold], plan: ResourcePlan, watch: FoldListener) -> None:
    """Train on the connected cluster, as many folds at once as the plan allows.

    Args:
        folds: trainings; each resumes from the checkpoints in its folder.
        plan: resources of a training and how many fit at once.
        watch: receives every epoch and every end.
    """
    waiting, running = deque(folds), dict[Any, _Running]()
    try:
        while waiting or running:
            while waiting and len(running) < plan.concurrent:
                started = _Running(waiting.popleft(), plan, watch)
                running[started.next()] = started
            ready, _ = ray.wait(list(running), timeout=_POLL_S)
            for answer in ready:
                fold = running.pop(answer)
                if fold.handle(answer):
                    running[fold.next()] = fold
    finally:
        for left in running.values():
            left.end()


class _Running:
    """A running fold, as seen by the driver."""

    def __init__(self, fold: Fold, plan: ResourcePlan, watch: FoldListener) -> None:
        self._fold, self._plan, self._watch = fold, plan, watch
        self._alone = fold.config.training.num_workers == 1
        self._deaths = 0
        self._actor = self._start()

    def next(self) -> Any:
        """Request the next epoch."""
        return self._actor.step.remote()

    def handle(self, answer: Any) -> bool:
        """Process a result; True if there is another epoch to request."""
        try:
            report = ray.get(answer)
        except RayActorError as error:
            return self._replace(first_line(error))
        except RayTaskError as error:
            return self._finish(_reason(error))
        except RayError as error:
            return self._finish(first_line(error))
        if report is None:
            return self._finish(None)
        self._deaths = 0
        # A replacement may resume from a checkpoint that is one epoch older than the last report.
        if report.epoch > self._watch.last(self._fold):
            self._watch.epoch(self._fold, report)
        return True

    def end(self) -> None:
        """Stop the actor; several workers first finish their epoch, or their placement group would leak."""
        if not self._alone:
            ray.wait([self._actor.close.remote()], timeout=_CLOSE_S)
        ray.kill(self._actor)

    def _start(self) -> Any:
        # Several workers reserve their own resources; their driver only waits.
        needs = self._plan.needs if self._alone else Needs(0)
        options = {"num_cpus": needs.cpus, "num_gpus": needs.gpus, "memory": needs.memory_bytes or None}
        actor = ray.remote(**options, max_restarts=0)(_FoldActor)
        return actor.remote(self._fold, self._watch.last(self._fold))

    def _replace(self, reason: str) -> bool:
        self._deaths += 1
        if self._deaths > _DEATHS:
            self._watch.ended(self._fold, f"its process died {self._deaths} times in one epoch: {reason}")
            return False
        self._watch.lost(self._fold, reason)
        # Two writers must never share a folder: an actor that is only unreachable is killed first.
        ray.kill(self._actor)
        self._actor = self._start()
        return True

    def _finish(self, reason: str | None) -> bool:
        self.end()
        self._watch.ended(self._fold, reason)
        return False


class _FoldActor:
    """A running fold, in its own process."""

    def __init__(self, fold: Fold, known_epoch: int) -> None:
        self._fold, self._known_epoch = fold, known_epoch
        self._epochs: Iterator[EpochReport] | None = None

    def step(self) -> EpochReport | None:
        """Train one epoch; return None at the end."""
        if self._epochs is None:
            self._epochs = self._begin()
        return next(self._epochs, None)

    def close(self) -> None:
        """Stop the workers, if there are any."""
        if self._epochs is not None and hasattr(self._epochs, "close"):
            self._epochs.close()

    def _begin(self) -> Iterator[EpochReport]:
        fold = self._fold
        run = fit if fold.config.training.num_workers == 1 else fit_distributed
        return run(fold.config, fold.train, fold.validation, fold.folder, known_epoch=self._known_epoch)


def _reason(error: RayTaskError) -> str:
    """Return the reason of a failure: all lines of a gtvray error, class and first line of any other."""
    cause = error.cause
    if isinstance(cause, GtvrayError):
        return "; ".join(line.strip() for line in str(cause).splitlines())
    return f"{type(cause).__name__}: {first_line(cause)}"
