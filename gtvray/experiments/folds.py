"""Trainings side by side on the cluster, one actor each: the folds of a cross-validation, or a single one.

An actor advances `fit`, as a trial of a sweep does. What one fold meets is no matter of the others: an actor that dies
is replaced and goes on from its newest checkpoint, and an error ends its own fold only.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError

from gtvray.config import Config, with_dotted
from gtvray.data import CachedCase, Project
from gtvray.datasets import Case, Folds
from gtvray.errors import GtvrayError
from gtvray.runtime import ResourcePlan
from gtvray.training import EpochReport, fit, fit_distributed

ALONE = "train"
# An actor may be lost to a node or to the kernel; one that dies thrice without an epoch in between will die again.
_DEATHS = 2
_POLL_S = 1.0
_CLOSE_S = 120.0


@dataclass(frozen=True)
class Fold:
    """A training and the cases that judge it.

    Attributes:
        name: "fold-0" and so on, or "train" outside of a cross-validation.
        config: of this training; its seed is the fold's own.
        train, validation: prepared cases.
        known, judged: the same cases as they came.
        folder: for checkpoints and whatever else belongs to it.
    """

    name: str
    config: Config
    train: list[CachedCase]
    validation: list[CachedCase]
    known: tuple[Case, ...]
    judged: tuple[Case, ...]
    folder: Path


class Watch(Protocol):
    """Whoever follows the folds."""

    def last(self, fold: Fold) -> int:
        """The last epoch of a fold that is known already."""

    def epoch(self, fold: Fold, report: EpochReport) -> None:
        """A fold has trained an epoch more."""

    def lost(self, fold: Fold, reason: str) -> None:
        """A fold's actor died, and another takes its place."""

    def ended(self, fold: Fold, reason: str | None) -> None:
        """A fold is trained to its end, or failed for a reason."""


def plan_folds(project: Project, config: Config, folds: Folds | None, chosen: int | None, folder: Path) -> list[Fold]:
    """What is to be trained.

    Args:
        project: the data.
        config: of all of them; a fold's number is added to its seed, so that members differ in more than their cases.
        folds: of a cross-validation; without it training and selection cases are those of the split.
        chosen: one fold only.
        folder: each training's own is in here.
    """
    prepared = {case.case_id: case for case in (*project.train, *project.selection)}

    def make(name: str, seed: int, train: Sequence[str], validation: Sequence[str]) -> Fold:
        return Fold(
            name,
            with_dotted(config, {"training.seed": seed}, name),
            [prepared[case_id] for case_id in train],
            [prepared[case_id] for case_id in validation],
            project.dataset.subset(tuple(train)),
            project.dataset.subset(tuple(validation)),
            folder / name,
        )

    seed = config.training.seed
    if folds is None:
        return [make(ALONE, seed, project.split.train, project.split.selection)]
    numbers = range(len(folds.validation)) if chosen is None else [chosen]
    return [make(f"fold-{n}", seed + n, folds.train(n), folds.validation[n]) for n in numbers]


def train_folds(folds: Sequence[Fold], plan: ResourcePlan, watch: Watch) -> None:
    """Train on the connected cluster, as many at once as the plan has room for.

    Args:
        folds: what to train; each goes on from what is in its folder.
        plan: of the cluster.
        watch: told of every epoch and of every end.
    """
    waiting, running = deque(folds), dict[Any, _Running]()
    try:
        while waiting or running:
            while waiting and len(running) < plan.concurrent:
                begun = _Running(waiting.popleft(), plan, watch)
                running[begun.next()] = begun
            ready, _ = ray.wait(list(running), timeout=_POLL_S)
            for answer in ready:
                at_work = running.pop(answer)
                if at_work.hear(answer):
                    running[at_work.next()] = at_work
    finally:
        for left in running.values():
            left.end()


class _Running:
    """A fold under way, seen from the driver."""

    def __init__(self, fold: Fold, plan: ResourcePlan, watch: Watch) -> None:
        self._fold, self._plan, self._watch = fold, plan, watch
        self._alone = fold.config.training.num_workers == 1
        self._deaths = 0
        self._actor = self._start()

    def next(self) -> Any:
        """Ask for the next epoch."""
        return self._actor.step.remote()

    def hear(self, answer: Any) -> bool:
        """Take an answer; True if there is more to ask for."""
        try:
            report = ray.get(answer)
        except RayActorError as error:
            return self._replace(_first_line(error))
        except RayTaskError as error:
            return self._finish(_reason(error))
        except RayError as error:
            return self._finish(_first_line(error))
        if report is None:
            return self._finish(None)
        self._deaths = 0
        # What another actor is to go on from may be an epoch older than what has been told.
        if report.epoch > self._watch.last(self._fold):
            self._watch.epoch(self._fold, report)
        return True

    def end(self) -> None:
        """End the actor; with several workers, at the end of their epoch, or their placement group would stay."""
        if not self._alone:
            ray.wait([self._actor.close.remote()], timeout=_CLOSE_S)
        ray.kill(self._actor)

    def _start(self) -> Any:
        # Several workers bring their own resources; their driver only waits.
        cpus, gpus = (self._plan.cpus_per_trial, self._plan.gpus_per_trial) if self._alone else (0, 0)
        actor = ray.remote(num_cpus=cpus, num_gpus=gpus, max_restarts=0)(_FoldActor)
        return actor.remote(self._fold, self._watch.last(self._fold))

    def _replace(self, reason: str) -> bool:
        self._deaths += 1
        if self._deaths > _DEATHS:
            self._watch.ended(self._fold, f"its process died {self._deaths} times in one epoch: {reason}")
            return False
        self._watch.lost(self._fold, reason)
        self._actor = self._start()
        return True

    def _finish(self, reason: str | None) -> bool:
        self.end()
        self._watch.ended(self._fold, reason)
        return False


class _FoldActor:
    """A fold under way, in a process of its own."""

    def __init__(self, fold: Fold, told: int) -> None:
        self._fold, self._told = fold, told
        self._epochs: Iterator[EpochReport] | None = None

    def step(self) -> EpochReport | None:
        """Train one epoch; None at the end."""
        if self._epochs is None:
            self._epochs = self._begin()
        return next(self._epochs, None)

    def close(self) -> None:
        """End the workers, if there are any."""
        if self._epochs is not None and hasattr(self._epochs, "close"):
            self._epochs.close()

    def _begin(self) -> Iterator[EpochReport]:
        fold = self._fold
        run = fit if fold.config.training.num_workers == 1 else fit_distributed
        return run(fold.config, fold.train, fold.validation, fold.folder, known_epoch=self._told)


def _reason(error: RayTaskError) -> str:
    """What a training's error comes to: one of ours in all its lines, any other by its class and first line."""
    cause = error.cause
    if isinstance(cause, GtvrayError):
        return "; ".join(line.strip() for line in str(cause).splitlines())
    return f"{type(cause).__name__}: {_first_line(cause)}"


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
