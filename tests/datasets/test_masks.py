"""Masks as stored by other programs, in check, import, scoring and cache: the correct voxels, or an error."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
from numpy.typing import NDArray

from gtvray.config import CacheConfig, PreprocessingConfig
from gtvray.data import CaseCache
from gtvray.datasets import check_dataset, index_dataset, read_binary, read_label, transfer
from gtvray.datasets.layouts import LayoutName
from gtvray.errors import DataError, GeometryError
from gtvray.evaluation import MeanPositionBaseline, score_case
from gtvray.geometry import Volume
from gtvray.io import read_json, read_labels, read_volume, write_json, write_volume

Array = NDArray[np.generic]
NOISE = np.random.default_rng(3)
ALTERED: dict[str, Callable[[Array], Array]] = {
    "0.9999999": lambda a: (a * 0.9999999).astype(np.float32),
    "noise": lambda a: (a + NOISE.normal(0, 1e-7, a.shape)).astype(np.float32),
    "float64": lambda a: a + NOISE.normal(0, 1e-5, a.shape),
}


def _store(path: Path, array: Array, affine: Array, dtype: str | None = None) -> None:
    image = nibabel.Nifti1Image(array, affine)
    image.set_data_dtype(dtype or array.dtype)
    nibabel.save(image, path)


def _rewrite(path: Path, change: Callable[[Array], Array], dtype: str | None = None) -> Array:
    """Store a mask with changed values, and return the original voxels."""
    volume = read_volume(path)
    _store(path, change(volume.array), volume.affine, dtype)
    return np.asarray(volume.array)


def _masks(folder: Path) -> dict[str, Array]:
    return {case.case_id: read_volume(case.label).array for case in index_dataset(folder).cases if case.label}


def _several(array: Array, *, highest: int = 9) -> NDArray[np.float64]:
    """Return the structure as label 3, with other labels up to `highest`, as floats."""
    labels = array.astype(np.float64) * 3
    labels[:3], labels[-3:], labels[0, 0, 0] = 1, highest, 0
    return labels


@pytest.mark.parametrize(
    ("kind", "layout", "label"),
    [("0.9999999", "structseg", None), ("noise", "nnunet", "1"), ("float64", "msd", None), ("noise", "structseg", "1")],
)
def test_conversion_of_an_altered_mask_keeps_every_voxel(
    tmp_path: Path, dataset_folder: Path, kind: str, label: str | None, layout: LayoutName
) -> None:
    for case in dataset_folder.iterdir():
        before = _rewrite(case / "label.nii.gz", ALTERED[kind])
        assert before.any()
    target = tmp_path / "Dataset001_GTV"
    originals = {case.name: read_labels(case / "label.nii.gz").volume.array for case in dataset_folder.iterdir()}
    done = transfer(dataset_folder, target, layout, label=label)
    assert sorted(done.rounded) == ["1", "10", "2"]
    for case_id, mask in _masks(target).items():
        assert mask.dtype == np.uint8
        np.testing.assert_array_equal(mask, originals[case_id])
    record = read_json(target / "transfer.json")["cases"]
    assert all("differ from an integer" in entry["label_note"] for entry in record)


@pytest.mark.parametrize("kind", ALTERED)
def test_altered_mask_is_read_identically_everywhere_and_reported(
    tmp_path: Path, dataset_folder: Path, kind: str
) -> None:
    expected = {case.name: _rewrite(case / "label.nii.gz", ALTERED[kind]) for case in dataset_folder.iterdir()}
    dataset = index_dataset(dataset_folder)
    findings = [each for each in check_dataset(dataset) if each.code.startswith("label.")]
    assert [(each.severity, each.code) for each in findings] == [("info", "label.rounded")] * 3
    cache = CaseCache(tmp_path / "cache", PreprocessingConfig(spacing_mm=(5.0, 5.0, 5.0)), CacheConfig())
    for case in dataset.cases:
        scan = read_volume(case.image)
        label = read_label(case, scan)
        np.testing.assert_array_equal(label.array, expected[case.case_id])
        assert case.label is not None
        np.testing.assert_array_equal(read_binary(case.label).array, expected[case.case_id])
        # A mask read as a plain volume is scored with the same voxels.
        assert score_case("x", read_volume(case.label), label).dsc == 1.0
        plain = MeanPositionBaseline.fit([read_volume(case.label)]).predict(scan)
        np.testing.assert_array_equal(plain.array, MeanPositionBaseline.fit([label]).predict(scan).array)
    prepared = cache.prepare(dataset.cases[0])
    assert any("differ from an integer" in note for note in prepared.meta["notes"])


@pytest.mark.parametrize("highest", [4, 9, 25])
def test_labels_stored_with_a_scaling_are_found(tmp_path: Path, dataset_folder: Path, highest: int) -> None:
    expected = {
        case.name: _rewrite(case / "label.nii.gz", lambda a: _several(a, highest=highest), "int16")
        for case in dataset_folder.iterdir()
    }
    findings = check_dataset(index_dataset(dataset_folder))
    refused = [each for each in findings if each.code == "label.not_binary"]
    assert len(refused) == 3
    assert f"found values 0, 1, 3, {highest}" in refused[0].message
    for label in ("1", "3", str(highest)):
        transfer(dataset_folder, tmp_path / label, "structseg", label=label)
        for case_id, mask in _masks(tmp_path / label).items():
            wanted = _several(expected[case_id], highest=highest) == int(label)
            np.testing.assert_array_equal(mask, wanted.astype(np.uint8))


@pytest.mark.parametrize(
    ("change", "dtype", "words"),
    [
        (lambda a: a * np.float32(0.5), None, ("0.5",)),
        (lambda a: a * np.float32(254.7), None, ("254.7",)),
        (lambda a: _several(a, highest=7), "uint8", ("scl_slope 0.0274509806", "0.9882353")),
        (lambda a: a.astype(np.int16) * -1, None, ("-1",)),
        (lambda a: np.where(a > 0, np.float32(0.998), 0).astype(np.float32), None, ("0.998",)),
    ],
)
def test_values_that_are_not_labels_are_never_imported(
    tmp_path: Path,
    dataset_folder: Path,
    change: Callable[[Array], Array],
    dtype: str | None,
    words: tuple[str, ...],
) -> None:
    _rewrite(dataset_folder / "2" / "label.nii.gz", change, dtype)
    for label in (None, "1", "3"):
        with pytest.raises(DataError, match="not labels") as caught:
            transfer(dataset_folder, tmp_path / "out", "structseg", label=label)
        assert all(word in caught.value.fields["found"] for word in words)
        assert os.listdir(tmp_path) == ["set"]
    (found,) = [each for each in check_dataset(index_dataset(dataset_folder)) if each.severity == "error"]
    assert (found.case_id, found.code) == ("2", "label.not_labels")
    assert all(word in found.message for word in words)
    # Advice to use --label would lead to the same error or to an empty mask.
    assert "--label" not in found.advice


def test_import_with_an_empty_structure_is_refused(tmp_path: Path, dataset_folder: Path) -> None:
    _rewrite(dataset_folder / "10" / "label.nii.gz", lambda a: a * 0)
    for label, count in ((None, 1), ("1", 1), ("2", 3)):
        with pytest.raises(DataError, match=rf"no voxel of .* in {count} of 3 masks") as caught:
            transfer(dataset_folder, tmp_path / "out", "structseg", label=label)
        assert "10 (values 0)" in caught.value.fields["found"]
        assert os.listdir(tmp_path) == ["set"]


def test_error_on_a_mask_of_value_255_names_the_import_command(tmp_path: Path, dataset_folder: Path) -> None:
    for case in dataset_folder.iterdir():
        _rewrite(case / "label.nii.gz", lambda a: a * np.uint8(255))
    with pytest.raises(DataError, match="not binary") as caught:
        transfer(dataset_folder, tmp_path / "out", "structseg")
    assert "--label 255" in caught.value.fields["do"]
    transfer(dataset_folder, tmp_path / "out", "structseg", label="255")
    assert all(mask.any() for mask in _masks(tmp_path / "out").values())


def test_label_257_does_not_wrap_to_label_1(tmp_path: Path, dataset_folder: Path) -> None:
    for case in dataset_folder.iterdir():
        _rewrite(case / "label.nii.gz", lambda a: a.astype(np.int16) * 257)
    with pytest.raises(DataError, match="no voxel of label_1"):
        transfer(dataset_folder, tmp_path / "one", "structseg", label="1")
    transfer(dataset_folder, tmp_path / "two", "structseg", label="257")
    assert all(mask.any() for mask in _masks(tmp_path / "two").values())


def test_label_value_in_dataset_json_must_be_an_integer(tmp_path: Path) -> None:
    for value in (1.5, "1.5", True, None, -1, [], [1, 2.5]):
        about = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "GTV": value}, "numTraining": 0}
        write_json(tmp_path / "dataset.json", about)
        with pytest.raises(DataError, match="not an integer"):
            index_dataset(tmp_path)


def test_error_on_a_rounded_affine_states_the_distance(dataset_folder: Path) -> None:
    (case, *_) = index_dataset(dataset_folder).cases
    scan, file = read_volume(case.image), dataset_folder / case.case_id / "label.nii.gz"
    mask = read_volume(file)
    fine = mask.affine.copy()
    fine[0, 3] += 0.01
    write_volume(file, Volume(mask.array, fine))
    read_label(case, scan)
    coarse = mask.affine.copy()
    coarse[0, 0] *= 1.01
    write_volume(file, Volume(mask.array, coarse))
    with pytest.raises(GeometryError, match="not on the scan's grid") as caught:
        read_label(case, scan)
    assert "up to 1.3 mm (0.33 voxels) apart" in caught.value.fields["found"]
    assert "rounded" in caught.value.fields["do"]


def test_real_masks_altered_by_other_programs_keep_their_voxels(tmp_path: Path, real_cases: Path) -> None:
    expected = {}
    for number, case in enumerate(sorted(real_cases.iterdir())[:3]):
        folder = tmp_path / "set" / case.name
        folder.mkdir(parents=True)
        shutil.copy(case / "data.nii.gz", folder)
        mask = read_volume(case / "label.nii.gz")
        expected[case.name] = mask.array > 0
        changed = list(ALTERED.values())[number](mask.array)
        _store(folder / "label.nii.gz", changed, mask.affine)
    transfer(tmp_path / "set", tmp_path / "out", "structseg", label="1")
    for case_id, mask in _masks(tmp_path / "out").items():
        np.testing.assert_array_equal(mask > 0, expected[case_id])


def test_real_multi_organ_mask_stored_with_a_scaling_keeps_its_labels(tmp_path: Path, shared_data: Path) -> None:
    organs = read_labels(shared_data / "totalsegmentator_example" / "example_seg.nii.gz").volume
    path = tmp_path / "label.nii.gz"
    _store(path, organs.array.astype(np.float64), organs.affine, "int16")
    assert nibabel.load(path).dataobj.slope not in (0, 1)
    found = read_labels(path)
    np.testing.assert_array_equal(found.volume.array, organs.array)
