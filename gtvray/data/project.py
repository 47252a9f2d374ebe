"""A dataset ready for training: split, prepared and fingerprinted, with a stored split."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from gtvray.config import Config, SplitConfig
from gtvray.data.cache.cases import CaseCache
from gtvray.data.cache.prepared import CachedCase
from gtvray.data.fingerprint import Fingerprint, digest_of, files_digest, fingerprint
from gtvray.datasets.corrections import Correction, CorrectionStore, UsableCorrections
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
        corrections: corrected masks among the training cases, by case.
    """

    dataset: Dataset
    split: Split
    train: list[CachedCase]
    selection: list[CachedCase]
    fingerprint: Fingerprint
    patients: Patients | None
    split_file: Path
    scans: Mapping[str, str]
    corrections: Mapping[str, Correction] = field(default_factory=dict)

    @property
    def held_out(self) -> tuple[Case, ...]:
        """The unprepared cases that no choice may be based on."""
        return self.dataset.subset(self.split.held_out)

    def provenance(self) -> dict[str, Any]:
        """Describe the training data for a bundle; promotion compares the scans with its held-out ones.

        Returns:
            the fingerprint, the data's licence, the sha256 of each scan that was trained on or used for a choice, and
            the corrected masks among them.
        """
        used = sorted(self.scans[case.case_id] for case in (*self.train, *self.selection))
        found = {**self.fingerprint.as_dict(), "licence": self.dataset.licence, "scans": used}
        corrected = [
            {"case": case_id, **{key: getattr(each, key) for key in ("name", "reviewer", "source", "derived_from")}}
            for case_id, each in self.corrections.items()
        ]
        return {**found, **({"corrections": corrected} if corrected else {})}

    def with_corrections(self, usable: UsableCorrections, store: CorrectionStore, cache: CaseCache) -> Project:
        """Add corrected masks to the training cases; split, fingerprint and held-out cases stay the same.

        Args:
            usable: corrections that may be trained on.
            store: contains them.
            cache: of the prepared cases.

        Raises:
            DataError: a correction is not usable.
        """
        replaced = {
            case_id: replace(store.case(each), case_id=case_id, image=self.dataset.subset((case_id,))[0].image)
            for case_id, each in usable.replaced.items()
        }
        added = [store.case(each) for each in usable.added]
        prepared = {case.case_id: cache.prepare(case) for case in (*replaced.values(), *added)}
        names = tuple(case.case_id for case in added)
        return replace(
            self,
            dataset=replace(
                self.dataset,
                cases=(*(replaced.get(case.case_id, case) for case in self.dataset.cases), *added),
            ),
            split=replace(self.split, train=(*self.split.train, *names)),
            train=[prepared.get(case.case_id, case) for case in self.train] + [prepared[name] for name in names],
            scans={**self.scans, **{name: each.meta["image_sha256"] for name, each in prepared.items()}},
            patients=None if self.patients is None else self.patients.including(names),
            corrections={**usable.replaced, **{each.name: each for each in usable.added}},
        )

    def folds(self, count: int, seed: int) -> Folds:
        """Training and selection cases in folds for cross-validation; stored beside the split and reused.

        Raises:
            DataError: as `split_folds`.
        """
        # Corrected masks add cases and change tumour volumes, so their folds are others.
        masks = "".join(sorted(each.label_sha256 for each in self.corrections.values()))
        suffix = f"-{hashlib.sha256(masks.encode()).hexdigest()[:8]}" if masks else ""
        stored = self.split_file.with_name(f"{self.split_file.stem}-folds-{count}-{seed}{suffix}.json")
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
    # Corrected masks join the training cases of a split; they do not change it.
    return hashlib.sha256(config.model_dump_json(exclude={*later, "corrections"}).encode()).hexdigest()[:8]
