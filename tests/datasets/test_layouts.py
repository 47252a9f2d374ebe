"""StructSeg's layout: case order, wrapper folders, missing files and unusable masks."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from gtvray.datasets import Case, index_dataset, read_label
from gtvray.errors import DataError, GeometryError, NotFoundError
from gtvray.geometry import Volume
from gtvray.io import read_volume, write_volume


def _relabel(case: Case, change: object = None, **grid: object) -> None:
    """Write another mask for a case."""
    assert case.label is not None
    label = read_volume(case.label)
    array = label.array.copy() if change is None else np.asarray(change(label.array.copy()))  # type: ignore[operator]
    write_volume(case.label, Volume(array, np.asarray(grid.get("affine", label.affine))))


def test_cases_are_in_natural_order(dataset_folder: Path) -> None:
    shutil.copytree(dataset_folder / "1", dataset_folder / "pt_9")
    shutil.copytree(dataset_folder / "1", dataset_folder / "pt_10")
    shutil.copytree(dataset_folder / "1", dataset_folder / "²")
    (dataset_folder / ".hidden").mkdir()
    (dataset_folder / "notes").mkdir()
    (dataset_folder / "readme.txt").touch()
    dataset = index_dataset(dataset_folder)
    assert [case.case_id for case in dataset.cases] == ["1", "2", "10", "pt_9", "pt_10", "²"]
    assert [case.case_id for case in dataset.subset(("10", "1"))] == ["10", "1"]


@pytest.mark.parametrize("wrapper", ["HaN_GTV/Naso_GTV", "Naso_GTV", "HaN_GTV", "HaN_OAR"])
def test_cases_are_found_in_every_wrapper(tmp_path: Path, dataset_folder: Path, wrapper: str) -> None:
    home = tmp_path / "download" / wrapper
    shutil.copytree(dataset_folder, home)
    for folder in (tmp_path / "download", home):
        dataset = index_dataset(folder)
        assert (len(dataset.cases), dataset.root) == (3, home)


def test_uncompressed_files_are_found(tmp_path: Path, dataset_folder: Path) -> None:
    for name in ("data", "label"):
        packed = dataset_folder / "1" / f"{name}.nii.gz"
        write_volume(packed.with_suffix(""), read_volume(packed))
        packed.unlink()
    assert index_dataset(dataset_folder).cases[0].image.name == "data.nii"


def test_missing_folder_scan_or_mask_is_named(tmp_path: Path, dataset_folder: Path) -> None:
    with pytest.raises(NotFoundError):
        index_dataset(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no case"):
        index_dataset(tmp_path / "empty")
    (dataset_folder / "2" / "label.nii.gz").unlink()
    with pytest.raises(DataError, match="no mask") as caught:
        index_dataset(dataset_folder)
    assert caught.value.fields["where"].endswith("/2")
    cases = index_dataset(dataset_folder, labels_required=False).cases
    assert [case.label is None for case in cases] == [False, True, False]
    with pytest.raises(DataError, match="no mask"):
        read_label(cases[1], read_volume(cases[1].image))
    shutil.move(dataset_folder / "10" / "data.nii.gz", tmp_path)
    with pytest.raises(DataError, match="no scan"):
        index_dataset(dataset_folder, labels_required=False)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda a: a * 0, DataError, "empty"),
        (lambda a: a * 2, DataError, "binary"),
        (lambda a: np.where(a, 22, 1).astype(np.uint8), DataError, "binary"),
        (lambda a: a[:-1], GeometryError, "grid"),
    ],
)
def test_unusable_mask_is_refused(dataset_folder: Path, change: object, error: type[Exception], message: str) -> None:
    case = index_dataset(dataset_folder).cases[0]
    _relabel(case, change)
    with pytest.raises(error, match=message) as caught:
        read_label(case, read_volume(case.image))
    assert caught.value.fields["where"] == str(case.label)  # type: ignore[attr-defined]


def test_shifted_mask_is_refused_and_float_mask_is_accepted(dataset_folder: Path) -> None:
    one, other, _ = index_dataset(dataset_folder).cases
    image = read_volume(one.image)
    moved = image.affine.copy()
    moved[2, 3] += 1
    _relabel(one, affine=moved)
    with pytest.raises(GeometryError, match="grid"):
        read_label(one, image)
    _relabel(other, lambda a: a.astype(np.float32))
    assert read_label(other, image).array.dtype == np.uint8
