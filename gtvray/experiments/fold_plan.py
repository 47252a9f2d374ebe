"""The trainings of a cross-validation, planned before a cluster is connected; this module does not import Ray."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gtvray.config import Config, with_dotted
from gtvray.data import CachedCase, Project
from gtvray.datasets import Case, Folds

ALONE = "train"


@dataclass(frozen=True)
class Fold:
    """A training and the cases it is scored on.

    Attributes:
        name: "fold-0" and so on, or "train" without cross-validation.
        config: settings of this training, with the seed of the fold.
        train, validation: prepared cases.
        train_cases, validation_cases: the same cases with their original files.
        folder: contains checkpoints, masks and pictures.
    """

    name: str
    config: Config
    train: list[CachedCase]
    validation: list[CachedCase]
    train_cases: tuple[Case, ...]
    validation_cases: tuple[Case, ...]
    folder: Path


def plan_folds(project: Project, config: Config, folds: Folds | None, chosen: int | None, folder: Path) -> list[Fold]:
    """Return the trainings to run.

    Args:
        project: the data.
        config: settings; the number of a fold is added to its seed, so that ensemble members differ in seed too.
        folds: folds of a cross-validation; None uses training and selection cases of the split.
        chosen: number of the only fold to run; None runs all.
        folder: contains a folder per training.
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
