"""A dataset ready for training: split, prepared and fingerprinted, with a stored split."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gtvray.config import Config, SplitConfig
from gtvray.data.cache.cases import CaseCache
from gtvray.data.cache.prepared import CachedCase
from gtvray.data.fingerprint import Fingerprint, digest_of, files_digest, fingerprint
from gtvray.datasets.folds import Folds, split_folds
from gtvray.datasets.layouts.cases import Case, Dataset
from gtvray.datasets.layouts.patients import Patients, find_patients
from gtvray.datasets.splits import Split, split_cases
from gtvray.io import sha256_of


@dataclass(frozen=True)
class Project:
    """The cases of a dataset by their role.

    Attributes:
        dataset: all cases.
        split: the role of each case.
        train, selection: prepared cases.
        fingerprint: of the dataset.
        patients: the patient of each case, where known.
        split_file: the stored split.
        scans: case -> sha256 of its scan.
    """

    dataset: Dataset
    split: Split
    train: list[CachedCase]
    selection: list[CachedCase]
    fingerprint: Fingerprint
    patients: Patients | None
    split_file: Path
    scans: Mapping[str, str]

    @property
    def held_out(self) -> tuple[Case, ...]:
        """The unprepared cases that no choice may be based on."""
        return self.dataset.subset(self.split.held_out)

    def provenance(self) -> dict[str, Any]:
        """Describe the training data for a bundle; promotion compares the scans with its held-out ones.

        Returns:
            the fingerprint, the data's licence, and the sha256 of each scan that was trained on or used for a choice.
        """
        used = sorted(self.scans[case.case_id] for case in (*self.train, *self.selection))
        return {**self.fingerprint.as_dict(), "licence": self.dataset.licence, "scans": used}

    def folds(self, count: int, seed: int) -> Folds:
        """Training and selection cases in folds for cross-validation; stored beside the split and reused.

        Raises:
            DataError: as `split_folds`.
        """
        stored = self.split_file.with_name(f"{self.split_file.stem}-folds-{count}-{seed}.json")
        if stored.exists():
            return Folds.load(stored)[0]
        tumour_ml = {case.case_id: float(case.meta["tumour_ml"]) for case in (*self.train, *self.selection)}
        folds = split_folds(self.split, count, seed, tumour_ml, self.patients)
        folds.save(stored, self.fingerprint.digest)
        return folds


def open_project(
    dataset: Dataset, config: Config, *, cache: Path, splits: Path, report: Callable[[int, int], None] | None = None
) -> Project:
    """Split a dataset and prepare its cases.

    The split is stored under the dataset's fingerprint and reused. Which cases share a patient is part of the
    fingerprint: a model trained before that was known may have seen patients who are held out now, and promotion
    refuses it as trained on other data.

    Args:
        dataset: sound cases.
        config: split, preprocessing and cache settings.
        cache: folder of prepared cases.
        splits: folder of stored splits.
        report: called with (done, total) after each case.

    Raises:
        DataError: too few cases, or one that is not usable.
        ResourceError: the disk is full.
    """
    patients = find_patients(dataset, config.split.patient_pattern)
    prepared = CaseCache(cache, config.preprocessing, config.cache).prepare_all(dataset.cases, report)
    by_id = {case.case_id: case for case in prepared}
    digest = _with_patients(files_digest(prepared), patients)
    stored = splits / f"{digest[:16]}-{_digest(config.split)}.json"
    if stored.exists():
        split, _ = Split.load(stored)
        # Patients may have become known since the split was stored.
        split = replace(split, grouping=split.grouping if patients is None else patients.grouping)
    else:
        split = split_cases(tuple(by_id), config.split, patients)
        split.save(stored, digest)
    train = [by_id[case_id] for case_id in split.train]
    return Project(
        dataset=dataset,
        split=split,
        train=train,
        selection=[by_id[case_id] for case_id in split.selection],
        fingerprint=replace(fingerprint(prepared, train), digest=digest),
        patients=patients,
        split_file=stored,
        scans={case.case_id: case.meta["image_sha256"] for case in prepared},
    )


def dataset_digest(dataset: Dataset, patient_pattern: str) -> str:
    """The digest of a project with these cases, from their files alone; all of them need masks.

    Args:
        dataset: the cases.
        patient_pattern: as in the settings of the split.
    """
    files = ((case.case_id, case.image, case.label) for case in dataset.cases if case.label is not None)
    digest = digest_of((case_id, sha256_of(image), sha256_of(label)) for case_id, image, label in files)
    return _with_patients(digest, find_patients(dataset, patient_pattern))


def _with_patients(digest: str, patients: Patients | None) -> str:
    shared = patients.shared if patients is not None else []
    return hashlib.sha256(json.dumps([digest, shared]).encode()).hexdigest() if shared else digest


def _digest(config: SplitConfig) -> str:
    # Settings added later count only where they are used, so that older splits are found.
    later = {"patient_pattern"} & {name for name, value in config if not value}
    return hashlib.sha256(config.model_dump_json(exclude=later).encode()).hexdigest()[:8]
