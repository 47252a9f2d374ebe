"""Corrected masks: what is stored, what is refused, and that none reaches selection or held-out cases."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from gtvray.config import Config, load_config
from gtvray.data import CaseCache
from gtvray.datasets import CorrectionStore, Dataset, Patients, Review, Split, index_dataset, make_phantom
from gtvray.errors import DataError, GeometryError, InputError
from gtvray.experiments import open_data
from gtvray.io import Workspace, read_volume, write_volume
from gtvray.runtime import SILENT

REVIEW = Review("A. Physicist", "3D Slicer", "0123456789ab")


@pytest.fixture
def store(tmp_path: Path) -> CorrectionStore:
    return CorrectionStore(tmp_path / "corrections")


@pytest.fixture(scope="module")
def dataset(phantoms: Path) -> Dataset:
    return index_dataset(phantoms)


def split_of(dataset: Dataset) -> Split:
    ids = tuple(case.case_id for case in dataset.cases)
    return Split(train=ids[:8], selection=ids[8:10], held_out=ids[10:])


def smaller_mask(dataset: Dataset, case_id: str, folder: Path) -> Path:
    """The mask of a case without its first slice, as a reviewer may return it."""
    mask = read_volume(dataset.subset((case_id,))[0].label)
    array = np.array(mask.array)
    array[:, :, np.flatnonzero(array.any(axis=(0, 1)))[0]] = 0
    path = folder / "corrected.nrrd"
    write_volume(path, mask.with_array(array))
    return path


def test_a_correction_keeps_scan_mask_reviewer_and_origin(
    dataset: Dataset, store: CorrectionStore, tmp_path: Path
) -> None:
    case = dataset.cases[0]
    stored = store.add(case.image, smaller_mask(dataset, case.case_id, tmp_path), REVIEW, case_id="ANON 7")
    assert (stored.name, stored.case_id, stored.reviewer) == ("correction-0001", "ANON 7", "A. Physicist")
    assert store.all() == [stored]
    as_case = store.case(stored)
    assert as_case.image.read_bytes() == case.image.read_bytes()
    mask = read_volume(as_case.label)
    assert mask.same_grid(read_volume(case.image))
    assert 0 < mask.array.sum() < read_volume(case.label).array.sum()
    assert index_dataset(tmp_path / "corrections").cases[0].case_id == "correction-0001", "it is a dataset"


def test_unusable_masks_are_refused_and_nothing_is_stored(
    dataset: Dataset, store: CorrectionStore, tmp_path: Path
) -> None:
    case, other = dataset.cases[0], dataset.cases[1]
    empty = tmp_path / "empty.nii.gz"
    write_volume(empty, read_volume(case.label).with_array(np.zeros(read_volume(case.label).shape, np.uint8)))
    with pytest.raises(DataError, match="empty"):
        store.add(case.image, empty, REVIEW)
    with pytest.raises((DataError, GeometryError), match="grid"):
        store.add(case.image, _shifted(other.label, tmp_path), REVIEW)
    for review in ({"reviewer": " "}, {"reviewer": "A", "derived_from": "champion"}):
        with pytest.raises(InputError):
            Review(**review)
    assert store.all() == []
    assert not [path for path in (tmp_path / "corrections").rglob("*") if path.is_file()]


def _shifted(label: Path | None, folder: Path) -> Path:
    mask = read_volume(label)
    affine = np.array(mask.affine)
    affine[0, 3] += 5
    path = folder / "shifted.nii.gz"
    write_volume(path, type(mask)(mask.array, affine))
    return path


def test_the_latest_correction_of_a_scan_counts(dataset: Dataset, store: CorrectionStore, tmp_path: Path) -> None:
    case = dataset.cases[0]
    store.add(case.image, case.label, REVIEW)
    later = store.add(case.image, smaller_mask(dataset, case.case_id, tmp_path), Review("B. Physician"))
    assert later.name == "correction-0002"
    assert len(store.all()) == 2
    usable = store.usable(dataset, split_of(dataset))
    assert usable.replaced == {case.case_id: later}


@pytest.mark.parametrize("number", [8, 11])
def test_no_copy_of_a_selection_or_held_out_scan_is_trained_on(
    dataset: Dataset, store: CorrectionStore, tmp_path: Path, number: int
) -> None:
    """Stored in another format, and with noise that changes every voxel."""
    case, split = dataset.cases[number], split_of(dataset)
    scan = read_volume(case.image)
    write_volume(tmp_path / "again.nrrd", scan)
    noise = np.random.default_rng(0).normal(0, 4, scan.shape)
    write_volume(tmp_path / "noisy.nii.gz", scan.with_array(np.rint(scan.array + noise).astype(np.int16)))
    store.add(tmp_path / "again.nrrd", case.label, REVIEW)
    store.add(tmp_path / "noisy.nii.gz", case.label, REVIEW)
    usable = store.usable(dataset, split)
    assert (usable.replaced, usable.added) == ({}, ())
    assert set(usable.refused) == {"correction-0001", "correction-0002"}
    assert all(case.case_id in reason for reason in usable.refused.values())


def test_another_scan_of_a_held_out_patient_is_not_trained_on(
    dataset: Dataset, store: CorrectionStore, tmp_path: Path
) -> None:
    split, held_out = split_of(dataset), dataset.cases[11].case_id
    scan, mask = make_phantom(991, 0)
    write_volume(tmp_path / "new.nii.gz", scan)
    write_volume(tmp_path / "mask.nii.gz", mask)
    store.add(tmp_path / "new.nii.gz", tmp_path / "mask.nii.gz", Review("A", same_patient_as=dataset.cases[0].case_id))
    assert [each.name for each in store.usable(dataset, split).added] == ["correction-0001"]
    of_case = {case.case_id: case.case_id for case in dataset.cases} | {held_out: dataset.cases[0].case_id}
    refused = store.usable(dataset, split, Patients(of_case, "patients.csv")).refused
    assert "held-out" in refused["correction-0001"]


def test_a_changed_mask_in_the_store_is_refused(dataset: Dataset, store: CorrectionStore, tmp_path: Path) -> None:
    case = dataset.cases[0]
    stored = store.add(case.image, case.label, REVIEW)
    shutil.copyfile(smaller_mask(dataset, case.case_id, tmp_path), store.case(stored).label or tmp_path)
    with pytest.raises(DataError, match="has been changed"):
        store.usable(dataset, split_of(dataset))


@pytest.fixture(scope="module")
def config() -> Config:
    return load_config(overrides=["preprocessing.spacing_mm=[8, 8, 8]", "split.corrections=true"])


@pytest.mark.slow
def test_a_training_uses_corrections_and_its_split_stays_the_same(
    phantoms: Path, dataset: Dataset, config: Config, tmp_path: Path
) -> None:
    workspace = Workspace(tmp_path / "runs")
    store = CorrectionStore(workspace.corrections)
    with pytest.raises(DataError, match="no corrected mask"):
        open_data(phantoms, config, workspace, SILENT)
    without = config.model_copy(update={"split": config.split.model_copy(update={"corrections": False})})
    before, _ = open_data(phantoms, without, workspace, SILENT)
    train, held_out = before.split.train[0], before.split.held_out[0]
    store.add(dataset.subset((train,))[0].image, smaller_mask(dataset, train, tmp_path), REVIEW)
    scan, mask = make_phantom(991, 0)
    write_volume(tmp_path / "new.nii.gz", scan)
    write_volume(tmp_path / "mask.nii.gz", mask)
    store.add(tmp_path / "new.nii.gz", tmp_path / "mask.nii.gz", Review("B"))
    store.add(dataset.subset((held_out,))[0].image, dataset.subset((held_out,))[0].label, REVIEW)
    project, findings = open_data(phantoms, config, workspace, SILENT)
    assert [(each.code, each.case_id) for each in findings if "correction" in each.code] == [
        ("correction.kept_apart", "correction-0003")
    ]
    assert project.split.held_out == before.split.held_out
    assert project.split.selection == before.split.selection
    assert project.split.train == (*before.split.train, "correction-0002")
    assert [case.case_id for case in project.train] == list(project.split.train)
    assert project.fingerprint.digest == before.fingerprint.digest, "promotion scores it on the same data"
    changed = [new.folder != old.folder for new, old in zip(project.train, before.train, strict=False)]
    assert changed == [True] + [False] * (len(before.train) - 1)
    recorded = project.provenance()
    assert [each["case"] for each in recorded["corrections"]] == [train, "correction-0002"]
    assert len(recorded["scans"]) == len(before.provenance()["scans"]) + 1
    assert project.folds(3, 0) != before.folds(3, 0)
    assert {case.case_id for case in project.held_out} == {case.case_id for case in before.held_out}
    cache = CaseCache(workspace.cache, config.preprocessing, config.cache)
    assert cache.prepare(project.dataset.subset((train,))[0]).folder == project.train[0].folder
