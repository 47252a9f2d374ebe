"""Splits by patient into training, selection (compares trials) and held-out cases (used for no choice)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gtvray.config import SplitConfig
from gtvray.datasets.layouts.patients import UNVERIFIED, Patients
from gtvray.errors import DataError, InputError
from gtvray.io import canonical_name, read_json, write_json

# Version 2 added the grouping. Files of version 1 have no version.
SCHEMA_VERSION = 2
_PARTS = ("train", "selection", "held_out")
_MIN_PATIENTS = {"held_out": 3, "selection": 1, "train": 2}


@dataclass(frozen=True)
class Split:
    """Case ids of the three parts; no id is in two of them.

    Attributes:
        train, selection, held_out: case ids.
        grouping: the source of the patients by which cases were grouped, or that grouping can't be verified.
    """

    train: tuple[str, ...]
    selection: tuple[str, ...]
    held_out: tuple[str, ...]
    grouping: str = UNVERIFIED

    def __post_init__(self) -> None:
        ids = [*self.train, *self.selection, *self.held_out]
        if len(set(ids)) != len(ids):
            raise DataError("a case is in two parts of the split", found=sorted({i for i in ids if ids.count(i) > 1}))

    @property
    def parts(self) -> dict[str, tuple[str, ...]]:
        """Case ids by part."""
        return {name: getattr(self, name) for name in _PARTS}

    def save(self, path: Path, fingerprint: str) -> None:
        """Write the split with the fingerprint of its dataset."""
        stored = {"schema_version": SCHEMA_VERSION, "fingerprint": fingerprint, "grouping": self.grouping}
        write_json(path, {**stored, **{name: list(ids) for name, ids in self.parts.items()}})

    @classmethod
    def load(cls, path: Path) -> tuple[Split, str]:
        """Read a split and the fingerprint stored with it.

        Raises:
            NotFoundError, InputError: as `read_stored`.
        """
        stored = read_stored(path, SCHEMA_VERSION)
        parts = {name: tuple(map(canonical_name, stored[name])) for name in _PARTS}
        return cls(**parts, grouping=stored.get("grouping", UNVERIFIED)), stored["fingerprint"]


def read_stored(path: Path, version: int) -> dict[str, Any]:
    """Read a stored split or folds.

    Raises:
        NotFoundError: no such file.
        InputError: the file is not JSON, or has a later schema version.
    """
    stored: dict[str, Any] = read_json(path)
    if stored.get("schema_version", 1) > version:
        raise InputError(
            "the file was written by a later gtvray",
            where=path,
            expected=f"schema_version up to {version}",
            found=stored["schema_version"],
            do="use that version of gtvray",
        )
    return stored


def split_cases(case_ids: tuple[str, ...], config: SplitConfig, patients: Patients | None = None) -> Split:
    """Split cases by a seeded shuffle of the patients.

    Cases of a patient stay together, and each part is as close to its share as this allows. Held-out has at least three
    patients, selection one, training two.

    Args:
        case_ids: all cases.
        config: seed and shares.
        patients: patient of each case; by default every case is treated as a separate patient.

    Raises:
        DataError: too few cases or patients.
    """
    count = len(case_ids)
    wanted = {
        "held_out": max(_MIN_PATIENTS["held_out"], round(count * config.held_out_share)),
        "selection": max(_MIN_PATIENTS["selection"], round(count * config.selection_share)),
    }
    groups = list(group_cases(case_ids, patients).values())
    parts: dict[str, list[list[str]]] = {"held_out": [], "selection": [], "train": []}
    for i in np.random.default_rng(config.seed).permutation(len(groups)):
        fits = (name for name in wanted if _should_add(groups[i], parts[name], wanted[name], _MIN_PATIENTS[name]))
        parts[next(fits, "train")].append(groups[i])
    if count - sum(wanted.values()) < 2 or any(len(parts[name]) < least for name, least in _MIN_PATIENTS.items()):
        raise DataError(
            "too few cases to split" if patients is None else "too few patients to split",
            expected="at least 2 for training besides selection and held-out",
            found=f"{len(groups)} {'cases' if patients is None else f'patients of {count} cases'}, "
            f"of which {wanted['selection']} cases are for selection and {wanted['held_out']} held out",
            do="add cases, or lower split.selection_share or split.held_out_share",
        )
    ids = {name: tuple(case_id for group in part for case_id in group) for name, part in parts.items()}
    return Split(**ids, grouping=UNVERIFIED if patients is None else patients.grouping)


def group_cases(case_ids: tuple[str, ...], patients: Patients | None) -> Mapping[str, list[str]]:
    """Group cases by patient, in the order of their first case.

    Raises:
        DataError: a case is listed twice.
    """
    if len(set(case_ids)) != len(case_ids):
        raise DataError("a case is listed twice", found=sorted({i for i in case_ids if case_ids.count(i) > 1}))
    groups: dict[str, list[str]] = {}
    for case_id in case_ids:
        groups.setdefault(case_id if patients is None else patients.of_case[case_id], []).append(case_id)
    return groups


def _should_add(group: list[str], part: list[list[str]], wanted: int, min_patients: int) -> bool:
    """Return whether a part has too few patients, or comes closer to the wanted number of cases with this group."""
    size = sum(map(len, part))
    return len(part) < min_patients or abs(size + len(group) - wanted) < abs(size - wanted)
