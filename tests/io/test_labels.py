"""Label volumes: values close to an integer are rounded and reported, any other value is rejected."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest
from numpy.typing import NDArray

from gtvray.errors import DataError, VolumeError
from gtvray.geometry import Volume
from gtvray.io import as_labels, decode_labels, read_labels, write_volume

AFFINE = np.diag([-1.0, -1.0, 2.5, 1.0])
Array = NDArray[np.generic]


def _binary() -> NDArray[np.uint8]:
    mask = np.zeros((12, 11, 10), np.uint8)
    mask[3:8, 2:9, 4:7] = 1
    return mask


def _organs() -> NDArray[np.uint8]:
    return (_binary() * np.arange(10)[None, None]).astype(np.uint8)


def _stored(path: Path, array: Array, dtype: str | None = None, endian: str = "<") -> Path:
    """Write a NIfTI file with nibabel, which adds a scaling when it stores floats as integers."""
    image = nibabel.Nifti1Image(array, AFFINE, header=nibabel.Nifti1Header(endianness=endian))
    image.set_data_dtype(np.dtype(dtype or array.dtype).newbyteorder(endian))
    nibabel.save(image, path)
    return path


def _raw(path: Path, stored: Array, slope: float, inter: float) -> Path:
    """Write a NIfTI file with these stored integers and this scaling."""
    image = nibabel.Nifti1Image(stored, AFFINE)
    image.header.set_slope_inter(slope, inter)
    nibabel.save(image, path)
    # nibabel resets the scaling when it writes an image.
    with path.open("r+b") as file:
        header = nibabel.Nifti1Header.from_fileobj(file)
        header.set_slope_inter(slope, inter)
        file.seek(0)
        file.write(header.binaryblock)
    return path


NOISE = np.random.default_rng(0).normal(0, 1e-7, _binary().shape)
NEAR = {
    "0.9999999": lambda a: (a * 0.9999999).astype(np.float32),
    "noise of 1e-7": lambda a: (a + NOISE).astype(np.float32),
    "float64": lambda a: a + NOISE,
    "9e-4 beside": lambda a: (a + 9e-4).astype(np.float32),
    "a little below 0": lambda a: (a - 9e-4).astype(np.float32),
}


@pytest.mark.parametrize("ending", [".nii", ".nii.gz", ".nrrd"])
@pytest.mark.parametrize("sort", NEAR)
@pytest.mark.parametrize("labels", [_binary(), _organs()], ids=["binary", "organs"])
def test_values_near_integers_are_rounded(tmp_path: Path, labels: Array, sort: str, ending: str) -> None:
    path = tmp_path / f"label{ending}"
    write_volume(path, Volume(NEAR[sort](labels), AFFINE))
    found = read_labels(path)
    assert found.volume.array.dtype == np.uint8
    np.testing.assert_array_equal(found.volume.array, labels)
    assert "differ from an integer" in found.note
    assert not found.exact
    np.testing.assert_array_equal(decode_labels(path.read_bytes()).volume.array, labels)


@pytest.mark.parametrize("highest", [2, 3, 7, 9, 25, 117])
def test_automatic_int16_scaling_preserves_labels(tmp_path: Path, highest: int) -> None:
    labels = np.linspace(0, highest, 12 * 11 * 10).round().reshape(12, 11, 10)
    path = _stored(tmp_path / "label.nii.gz", labels, "int16")
    assert nibabel.load(path).dataobj.slope != 1
    found = read_labels(path)
    np.testing.assert_array_equal(found.volume.array, labels)
    # Other programs may round differently, so the file does not store exactly these labels.
    assert not found.exact
    if found.note:
        assert "scl_slope" in found.note


def test_coarse_scaling_is_rejected(tmp_path: Path) -> None:
    labels = (np.arange(12 * 11 * 10) % 8).reshape(12, 11, 10).astype(np.float64)
    path = _stored(tmp_path / "label.nii.gz", labels, "uint8")
    with pytest.raises(DataError, match="not labels") as caught:
        read_labels(path)
    assert "scl_slope 0.0274509806, scl_inter 0" in caught.value.fields["found"]
    assert "without scaling" in caught.value.fields["do"]
    # All digits are shown, because 1.0 would look like a label.
    assert "0.9882353" in caught.value.fields["found"]


@pytest.mark.parametrize(
    ("array", "shown"),
    [
        (_binary() * np.float32(0.5), "0.5 in 105 of 1320 voxels"),
        (_binary() * np.float32(254.7), "254.7 in"),
        (_binary() * np.float32(0.9989), "0.9989 in"),
        (_binary() * 1.0011, "1.0011 in"),
        (_binary().astype(np.int8) * np.int8(-56), "-56 in"),
        (_binary() * np.int16(-1), "-1 in"),
        (_binary() * np.float32(-1), "-1.0 in"),
        (_binary() * np.float32(1e12), "1e+12 in"),
        (np.linspace(0, 1, 1320, dtype=np.float32).reshape(12, 11, 10), "..."),
    ],
)
def test_non_integer_values_are_rejected_with_all_digits(tmp_path: Path, array: Array, shown: str) -> None:
    path = tmp_path / "label.nii.gz"
    write_volume(path, Volume(array, AFFINE))
    with pytest.raises(DataError, match="not labels") as caught:
        read_labels(path)
    assert shown in caught.value.fields["found"]
    assert "scl_slope" not in str(caught.value)
    assert caught.value.fields["where"] == str(path)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_are_rejected(tmp_path: Path, bad: float) -> None:
    array = _binary().astype(np.float32)
    array[0, 0, 0] = bad
    write_volume(tmp_path / "label.nii", Volume(array, AFFINE))
    with pytest.raises(VolumeError, match="NaN or infinite"):
        read_labels(tmp_path / "label.nii")
    with pytest.raises(DataError, match="not labels"):
        as_labels(Volume(array, AFFINE), "mask")


@pytest.mark.parametrize("dtype", ["uint8", "int8", "int16", "uint16", "int32", "uint32", "int64", "uint64"])
@pytest.mark.parametrize("endian", ["<", ">"])
def test_integer_labels_are_unchanged(tmp_path: Path, dtype: str, endian: str) -> None:
    labels = _organs().astype(dtype)
    found = read_labels(_stored(tmp_path / "label.nii", labels, endian=endian))
    np.testing.assert_array_equal(found.volume.array, labels)
    assert found.volume.array.dtype == dtype
    assert (found.note, found.exact) == ("", True)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("endian", ["<", ">"])
def test_integral_floats_are_labels_without_a_note(tmp_path: Path, dtype: str, endian: str) -> None:
    found = read_labels(_stored(tmp_path / "label.nii", _organs().astype(dtype), endian=endian))
    np.testing.assert_array_equal(found.volume.array, _organs())
    assert (found.volume.array.dtype, found.note, found.exact) == (np.uint8, "", True)


@pytest.mark.parametrize(
    ("value", "dtype"), [(257, "int16"), (65537, "int32"), (2**32 + 1, "int64"), (2**33 + 1, "uint64"), (300.0, "f4")]
)
def test_large_labels_do_not_overflow(tmp_path: Path, value: float, dtype: str) -> None:
    array = _binary().astype(dtype) * np.dtype(dtype).type(value)
    write_volume(tmp_path / "label.nii", Volume(array, AFFINE))
    found = read_labels(tmp_path / "label.nii").volume.array
    assert found.max() == value
    assert not np.isin(found, 1).any()


def test_destructive_scaling_is_reported(tmp_path: Path) -> None:
    tiny = read_labels(_raw(tmp_path / "tiny.nii", _organs().astype(np.int16), 1e-5, 0.0))
    assert not tiny.volume.array.any()
    assert "scl_slope 9.99999975e-06" in tiny.note
    with pytest.raises(DataError, match="not labels") as caught:
        read_labels(_raw(tmp_path / "share.nii", _binary().astype(np.int16), 1 / 255, 0.0))
    assert "scl_slope 0.00392156886" in caught.value.fields["found"]
    shifted = read_labels(_raw(tmp_path / "shifted.nii", _binary().astype(np.int16) + 5, 1.0, -5.0))
    np.testing.assert_array_equal(shifted.volume.array, _binary())
    assert not shifted.exact


def test_boolean_volumes_are_labels() -> None:
    np.testing.assert_array_equal(as_labels(Volume(_binary() > 0, AFFINE), "mask").volume.array, _binary())
