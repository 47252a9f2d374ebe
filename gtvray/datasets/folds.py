"""Cross-validation folds: every training or selection case is in the validation part of exactly one fold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gtvray.datasets.layouts.patients import UNVERIFIED, Patients
from gtvray.datasets.splits import Split, group_cases, read_stored
from gtvray.errors import DataError
from gtvray.io import write_json

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Folds:
    """The cases of each fold; no case is in two of them.

    Attributes:
        validation: case ids by fold; a fold trains on all others.
        grouping: as `Split.grouping`.
        seed: seed of the assignment.
    """

    validation: tuple[tuple[str, ...], ...]
    grouping: str
    seed: int

    def train(self, fold: int) -> tuple[str, ...]:
        """Return the case ids that a fold trains on."""
        return tuple(name for number, part in enumerate(self.validation) if number != fold for name in part)

    def save(self, path: Path, fingerprint: str) -> None:
        """Write the folds with the fingerprint of their dataset."""
        stored = {"schema_version": SCHEMA_VERSION, "fingerprint": fingerprint, "grouping": self.grouping}
        write_json(path, {**stored, "seed": self.seed, "validation": [list(part) for part in self.validation]})

    @classmethod
    def load(cls, path: Path) -> tuple[Folds, str]:
        """Read folds and the fingerprint stored with them.

        Raises:
            NotFoundError, InputError: as `read_stored`.
        """
        stored = read_stored(path, SCHEMA_VERSION)
        parts = tuple(tuple(part) for part in stored["validation"])
        return cls(parts, stored["grouping"], stored["seed"]), stored["fingerprint"]


def split_folds(
    split: Split, count: int, seed: int, tumour_ml: Mapping[str, float], patients: Patients | None = None
) -> Folds:
    """Divide training and selection cases into folds with similar tumour volumes; held-out cases are in none.

    Patients are ranked by their mean tumour volume. Each block of `count` consecutive patients is distributed over the
    folds, one each: the patients with the most cases go to the folds with the fewest, and ties are broken at random.

    Args:
        split: split of the dataset.
        count: number of folds, at least 2.
        seed: seed of the random order.
        tumour_ml: case id -> tumour volume.
        patients: patient of each case; by default every case is treated as a separate patient.

    Raises:
        DataError: fewer than two folds, or fewer patients than folds.
    """
    groups = list(group_cases((*split.train, *split.selection), patients).values())
    if not 2 <= count <= len(groups):
        expected = f"2 to {len(groups)}, the number of patients"
        raise DataError("invalid number of folds", expected=expected, found=count)
    # The result must not depend on the order of ids in the split.
    ranked = sorted(groups, key=lambda group: (np.mean([tumour_ml[name] for name in group]), group))
    rng = np.random.default_rng(seed)
    folds: list[list[str]] = [[] for _ in range(count)]
    for start in range(0, len(ranked), count):
        block = sorted(ranked[start : start + count], key=len, reverse=True)
        order = rng.permutation(count)
        emptiest = sorted(range(count), key=lambda fold: (len(folds[fold]), order[fold]))
        for group, fold in zip(block, emptiest, strict=False):
            folds[fold] += group
    return Folds(tuple(map(tuple, folds)), UNVERIFIED if patients is None else patients.grouping, seed)
