"""Splitting by case: training, selection (compares trials), held-out (no choice may look at it)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gtvray.config import SplitConfig
from gtvray.errors import DataError
from gtvray.io import read_json, write_json


@dataclass(frozen=True)
class Split:
    """Case ids of the three parts; no id is in two of them."""

    train: tuple[str, ...]
    selection: tuple[str, ...]
    held_out: tuple[str, ...]

    def __post_init__(self) -> None:
        ids = [*self.train, *self.selection, *self.held_out]
        if len(set(ids)) != len(ids):
            raise DataError("a case is on two sides of the split", found=sorted({i for i in ids if ids.count(i) > 1}))

    def save(self, path: Path, fingerprint: str) -> None:
        """Write the split with the fingerprint of the data it divides."""
        write_json(path, {"fingerprint": fingerprint, **{name: list(ids) for name, ids in vars(self).items()}})

    @classmethod
    def load(cls, path: Path) -> tuple[Split, str]:
        """Read a split and the fingerprint stored with it."""
        stored: dict[str, Any] = read_json(path)
        parts = {name: tuple(stored[name]) for name in ("train", "selection", "held_out")}
        return cls(**parts), stored["fingerprint"]


def split_cases(case_ids: tuple[str, ...], config: SplitConfig) -> Split:
    """Divide cases by a seeded shuffle; every part gets at least one case, held-out at least three.

    Patient ids are not part of StructSeg's layout: each case is taken for one patient, which cannot be verified.

    Raises:
        DataError: too few cases.
    """
    count = len(case_ids)
    held_out = max(3, round(count * config.held_out_share))
    selection = max(1, round(count * config.selection_share))
    if count - held_out - selection < 2:
        raise DataError(
            "too few cases to split",
            expected="at least 2 for training beside selection and held-out",
            found=f"{count} cases, of them {selection} for selection and {held_out} held out",
            do="add cases, or lower split.selection_share or split.held_out_share",
        )
    order = [case_ids[i] for i in np.random.default_rng(config.seed).permutation(count)]
    return Split(
        train=tuple(order[held_out + selection :]),
        selection=tuple(order[held_out : held_out + selection]),
        held_out=tuple(order[:held_out]),
    )
