"""Unusual and damaged files from the shared data: each has an expected orientation and dtype, or an expected error."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from gtvray.errors import GeometryError, VolumeError
from gtvray.io import read_volume

# name -> (orientation, dtype), or the error class and a word of its message.
EXPECTED: dict[str, tuple[str, str] | tuple[type[Exception], str]] = {
    "all_air.nii.gz": ("LPI", "int16"),
    "bad_magic.nii.gz": (VolumeError, "magic"),
    "base.nii.gz": ("LPI", "int16"),
    "base_ptv70.nii.gz": ("LPI", "uint8"),
    "big_endian.nii.gz": ("LPI", "int16"),
    "codes_zero.nii.gz": (GeometryError, "no affine"),
    "dim4_singleton.nii.gz": ("LPI", "int16"),
    "dim4_two_volumes.nii.gz": (VolumeError, "three-dimensional"),
    "empty.nii.gz": (VolumeError, "not a NIfTI"),
    "float_with_inf.nii.gz": (VolumeError, "infinite"),
    "float_with_nan.nii.gz": (VolumeError, "NaN"),
    "huge_spacing.nii.gz": (GeometryError, "plausible"),
    "negative_dim.nii.gz": (VolumeError, "three-dimensional"),
    "nifti2.nii.gz": ("LPI", "int16"),
    "not_gzip_named_gz.nii.gz": (VolumeError, "truncated"),
    "oblique_12deg.nii.gz": ("LPI", "int16"),
    "qform_sform_disagree.nii.gz": (GeometryError, "apart"),
    "reoriented_ras.nii.gz": ("RAS", "int16"),
    "reoriented_sar.nii.gz": ("SAR", "int16"),
    "scaled_0_1.nii.gz": ("LPI", "float32"),
    "scl_inter_minus1024.nii.gz": ("LPI", "float32"),
    "sheared_affine.nii.gz": ("LPI", "int16"),
    "single_slice.nii.gz": ("LPI", "int16"),
    "text_named_nii.nii": (VolumeError, "not a NIfTI"),
    "truncated_gz.nii.gz": (VolumeError, "damaged"),
    "uint8_windowed.nii.gz": ("LPI", "uint8"),
    "uncompressed.nii": ("LPI", "int16"),
    "unsigned_offset1024.nii.gz": ("LPI", "uint16"),
    "zero_pixdim.nii.gz": (GeometryError, "spacing"),
}
REAL = {
    "CT_AVM.nii.gz": ("RAS", "float32"),
    "CT_pitch.nii.gz": ("RAS", "uint8"),
    "fmri_pitch.nii.gz": ("RAS", "float32"),
    "pcasl.nii.gz": (VolumeError, "three-dimensional"),
}


@pytest.fixture(scope="module")
def derived(shared_data: Path) -> Path:
    return shared_data / "oddities" / "derived"


def test_every_unusual_file_has_an_expected_outcome(derived: Path) -> None:
    assert {file.name for file in derived.iterdir()} <= set(EXPECTED)
    assert {file.name for file in derived.parent.glob("nifti_real/*.nii*")} <= set(REAL)


@pytest.mark.parametrize("name", [*EXPECTED, *REAL])
def test_unusual_file_has_its_expected_outcome(derived: Path, name: str) -> None:
    path = derived / name if name in EXPECTED else derived.parent / "nifti_real" / name
    if not path.is_file():
        pytest.skip(f"{name} is not among the shared files")
    first, second = {**EXPECTED, **REAL}[name]
    if isinstance(first, str):
        volume = read_volume(path)
        assert (volume.orientation, str(volume.array.dtype)) == (first, second)
        return
    with pytest.raises(first, match=second) as caught:
        read_volume(path)
    assert type(caught.value) is first
    assert caught.value.fields["where"] == str(path)  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["dim4_singleton", "nifti2", "reoriented_ras", "big_endian", "scl_inter_minus1024"])
def test_equivalent_files_have_equal_voxels(derived: Path, name: str) -> None:
    if not (derived / f"{name}.nii.gz").is_file():
        pytest.skip(f"{name} is not among the shared files")
    base, other = read_volume(derived / "base.nii.gz"), read_volume(derived / f"{name}.nii.gz")
    reoriented = other.reoriented(base.orientation)
    assert reoriented.same_grid(base)
    np.testing.assert_array_equal(reoriented.array, base.array)
