"""The cases of a sweep's trials, by fold, and which trials are folds of one point.

A trial trains on one fold. Its seed is that of the sweep plus the number of its fold, as in a cross-validation, so the
point and the seed identify it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from gtvray.config import Config, SweepConfig
from gtvray.data import CachedCase, Project
from gtvray.training import check_memory, check_plan
from gtvray.tuning.result import TrialResult
from gtvray.tuning.searchers.repeated import SEED, same_point
from gtvray.tuning.space import Point, Space, check_corners


@dataclass(frozen=True)
class FoldCases:
    """Prepared cases of a fold.

    Attributes:
        train: cases that its trials train on.
        selection: cases that its trials are scored on.
    """

    train: list[CachedCase]
    selection: list[CachedCase]


def fold_cases(project: Project, sweep: SweepConfig, config: Config) -> tuple[FoldCases, ...]:
    """Return the cases of each fold; without folds, the training and selection cases of the split.

    Args:
        project: the data.
        sweep: settings of the sweep.
        config: settings of all trials.

    Raises:
        DataError: fewer patients than folds.
    """
    if sweep.folds == 1:
        return (FoldCases(project.train, project.selection),)
    folds = project.folds(sweep.folds, config.split.seed)
    prepared = {case.case_id: case for case in (*project.train, *project.selection)}
    return tuple(
        FoldCases([prepared[name] for name in folds.train(number)], [prepared[name] for name in of_fold])
        for number, of_fold in enumerate(folds.validation)
    )


def check_folds(
    space: Space, config: Config, folds: Sequence[FoldCases], memory_of: Callable[[Config], int] | None = None
) -> Point:
    """Check the training of every corner of the space on every fold; return the point of the first trial.

    Args:
        space: the search space.
        config: settings of all trials.
        folds: prepared cases by fold.
        memory_of: returns the memory of the device of a worker; called once, with the settings of a corner, since
            none that it depends on can be searched. None to check no memory.

    Raises:
        ConfigError, DataError: the settings are inconsistent with each other or with the data, or do not fit into the
            memory.
    """
    memory_bytes: int | None = None

    def check(settings: Config) -> None:
        nonlocal memory_bytes
        for fold in folds:
            check_plan(settings, fold.train, fold.selection)
        if memory_of is not None:
            memory_bytes = memory_of(settings) if memory_bytes is None else memory_bytes
            check_memory(settings, memory_bytes)

    return check_corners(space, config, check)


def fold_number(config: Config, of_trial: Config, folds: Sequence[FoldCases]) -> int:
    """Return the fold of a trial.

    Args:
        config: settings of all trials.
        of_trial: settings of the trial.
        folds: folds of the sweep.
    """
    return of_trial.training.seed - config.training.seed if len(folds) > 1 else 0


def folds_of_point(trial: TrialResult, trials: Sequence[TrialResult]) -> list[TrialResult]:
    """Return all trials with the same point as a trial, in order of their folds."""
    same = [each for each in trials if same_point(each.point, trial.point)]
    return sorted(same, key=lambda each: int(each.point.get(SEED, 0)))
