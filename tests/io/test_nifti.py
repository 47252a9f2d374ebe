"""NIfTI: what is written is read back, what is damaged is refused, and nothing else comes out."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from gtvray.errors import GeometryError, GtvrayError, NotFoundError, TooLargeError, VolumeError
from gtvray.geometry import Volume
from gtvray.io import decode_nifti, encode_nifti, read_volume, write_volume

AFFINE = np.array([[-0.9765625, 0, 0, 250.5], [0, -0.9765625, 0, 120.25], [0, 0, 2.5, -700.75], [0, 0, 0, 1]])
# Offsets in a NIfTI-1 header.
DIM, DATATYPE, PIXDIM, VOX_OFFSET, SLOPE, QFORM_CODE, QUATERN, SROW, MAGIC = 40, 70, 76, 108, 112, 252, 256, 280, 344


def _volume(dtype: str = "int16", shape: tuple[int, int, int] = (5, 6, 7), affine: np.ndarray = AFFINE) -> Volume:
    values = np.random.default_rng(0).integers(0, 100, shape)
    return Volume((values - (50 if dtype[0] != "u" else 0)).astype(dtype), affine)


def _patched(content: bytes, **patches: tuple[int, bytes]) -> bytes:
    changed = bytearray(content)
    for offset, new in patches.values():
        changed[offset : offset + len(new)] = new
    return bytes(changed)


def _with_nibabel(kind: Any, array: np.ndarray, slope: float = 1.0, inter: float = 0.0, byteorder: str = "<") -> bytes:
    header = kind.header_class(endianness=byteorder)
    header.set_data_dtype(array.dtype.newbyteorder(byteorder))
    image = kind(array, AFFINE, header)
    image.header.set_slope_inter(slope, inter)
    image.set_sform(AFFINE, 1)
    return bytes(image.to_bytes())


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("dtype", ["uint8", "int8", "int16", "uint16", "int32", "float32"])
def test_written_and_read_back(tmp_path: Path, dtype: str, suffix: str) -> None:
    volume = _volume(dtype)
    write_volume(tmp_path / f"v{suffix}", volume)
    back = read_volume(tmp_path / f"v{suffix}")
    assert back.array.dtype == volume.array.dtype
    np.testing.assert_array_equal(back.array, volume.array)
    # float32 holds this affine exactly.
    np.testing.assert_array_equal(back.affine, volume.affine)
    assert (tmp_path / f"v{suffix}").read_bytes()[:2] == (
        b"\x1f\x8b" if suffix.endswith("gz") else struct.pack("<h", 348)
    )
    assert [file.name for file in tmp_path.iterdir()] == [f"v{suffix}"]


def test_bool_is_written_as_uint8() -> None:
    mask = _volume().with_array(_volume().array > 0)
    back = decode_nifti(encode_nifti(mask, compress=True))
    assert back.array.dtype == np.uint8
    np.testing.assert_array_equal(back.array, mask.array)


@settings(max_examples=80, deadline=None)
@given(
    st.tuples(*[st.floats(-180, 180)] * 3),
    st.tuples(*[st.floats(0.3, 6)] * 3),
    st.sampled_from([0, 1e-4, 4e-4, 1e-3, 0.2]),
    st.sampled_from([1, -1]),
    st.sampled_from([(5, 6, 7), (1, 2, 900), (700, 1, 3)]),
)
@example((0.0, 0.0, 180.0), (6.0, 6.0, 6.0), 4e-4, 1, (1, 2, 900))
@example((0.03, 0.0, 180.0), (1.0, 1.0, 1.0), 0, 1, (700, 1, 3))
def test_any_place_in_the_patient_is_kept(angles, spacing_mm, tilt, mirror, shape) -> None:
    affine = np.eye(4)
    turn = Rotation.from_euler("xyz", angles, degrees=True).as_matrix()
    affine[:3, :3] = turn @ [[1, 0, 0], [0, 1, tilt], [0, 0, 1]] @ np.diag(spacing_mm) * [mirror, 1, 1]
    affine[:3, 3] = -321.1, 45.7, 1000.3
    content = encode_nifti(_volume(shape=shape, affine=affine), compress=False)
    assert decode_nifti(content).same_grid(Volume(np.zeros(shape), affine))
    # Readers that prefer the qform see the same place, or none.
    header = nibabel.Nifti1Image.from_bytes(content).header
    if header["qform_code"] > 0:
        furthest = (header.get_qform() - affine) @ [*np.subtract(shape, 1), 1]
        assert np.abs(furthest).max() < 0.2 * min(spacing_mm)


@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
@pytest.mark.parametrize("order", ["<", ">"])
def test_both_versions_and_byte_orders(kind: Any, order: str) -> None:
    array = _volume().array
    volume = decode_nifti(_with_nibabel(kind, array, byteorder=order))
    np.testing.assert_array_equal(volume.array, array)
    assert volume.array.dtype == np.int16
    assert volume.array.dtype.isnative
    np.testing.assert_allclose(volume.affine, AFFINE)


@pytest.mark.parametrize(("slope", "inter"), [(1, -1024), (2.5, 3), (0.5, 0), (-1, 0)])
def test_scaling_is_applied(slope: float, inter: float) -> None:
    content = encode_nifti(_volume(), compress=False)
    volume = decode_nifti(_patched(content, scl=(SLOPE, struct.pack("<2f", slope, inter))))
    assert volume.array.dtype == np.float32
    np.testing.assert_allclose(volume.array, _volume().array * slope + inter, rtol=1e-6)


def test_a_slope_of_zero_means_no_scaling() -> None:
    content = _patched(encode_nifti(_volume(), compress=False), scl=(SLOPE, struct.pack("<2f", 0, 7)))
    np.testing.assert_array_equal(decode_nifti(content).array, _volume().array)


@pytest.mark.parametrize("compress", [False, True])
def test_a_truncated_file_is_never_accepted(tmp_path: Path, compress: bool) -> None:
    content = encode_nifti(_volume(shape=(20, 20, 8)), compress=compress)
    path = tmp_path / "cut.nii.gz"
    for length in {*range(0, len(content), 97), *range(340, 360), *range(len(content) - 24, len(content))}:
        path.write_bytes(content[:length])
        with pytest.raises(VolumeError):
            read_volume(path)


def test_a_flipped_bit_in_a_gzip_stream_is_never_accepted() -> None:
    """The stream's own checksum is held against the voxels, at the end too."""
    content = encode_nifti(_volume(shape=(20, 20, 8)), compress=True)
    original = decode_nifti(content)
    for offset in range(10, len(content), 61):
        changed = _patched(content, one=(offset, bytes([content[offset] ^ 0x10])))
        with pytest.raises(GtvrayError):
            assert not np.array_equal(decode_nifti(changed).array, original.array)


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 347), st.binary(min_size=1, max_size=8))
@example(VOX_OFFSET, struct.pack("<f", np.nan))
@example(VOX_OFFSET, struct.pack("<f", np.inf))
@example(PIXDIM, struct.pack("<f", 0))
@example(PIXDIM + 4, struct.pack("<f", -1))
@example(QUATERN, struct.pack("<2f", 7, 7))
@example(QUATERN, struct.pack("<f", np.nan))
@example(DATATYPE, struct.pack("<h", 128))
@example(SROW + 28, struct.pack("<f", np.inf))
@example(SROW + 29, bytes.fromhex("00000000817f"))
@example(QUATERN + 12, struct.pack("<f", np.nan))
def test_no_header_brings_the_reader_down(offset: int, new: bytes) -> None:
    content = encode_nifti(_volume(), compress=False)
    try:
        volume = decode_nifti(_patched(content, header=(offset, new)), limit_bytes=1 << 20)
    except GtvrayError as error:
        assert "upload" in str(error)  # noqa: PT017
    else:
        assert volume.array.size == 5 * 6 * 7 or offset < DIM + 16
        assert np.isfinite(volume.array).all()


def test_sizes_that_overflow_when_multiplied_are_refused() -> None:
    content = _with_nibabel(nibabel.Nifti2Image, _volume().array)
    dim = struct.pack("<8q", 3, 1 << 32, 1 << 32, 1, 1, 1, 1, 1)
    with pytest.raises((TooLargeError, VolumeError)):
        decode_nifti(_patched(content, dim=(16, dim)))


def test_the_header_is_believed_only_up_to_a_limit() -> None:
    content = encode_nifti(_volume(shape=(30, 30, 30)), compress=True)
    assert decode_nifti(content, limit_bytes=54_000).shape == (30, 30, 30)
    with pytest.raises(TooLargeError):
        decode_nifti(content, limit_bytes=53_999)
    header = _patched(encode_nifti(_volume(), compress=False), dim=(DIM, struct.pack("<4h", 3, 32767, 32767, 32767)))
    with pytest.raises(TooLargeError):
        decode_nifti(header)


def test_a_stream_that_goes_on_and_on_is_refused() -> None:
    bomb = gzip.compress(encode_nifti(_volume(), compress=False) + bytes(2 << 20))
    with pytest.raises(VolumeError, match="longer"):
        decode_nifti(bomb)


def test_qfac_of_zero_is_read_as_one() -> None:
    """The standard says so, and scanners write it."""
    content = encode_nifti(_volume(affine=np.diag([1.0, 2, 3, 1])), compress=False)
    volume = decode_nifti(_patched(content, qfac=(PIXDIM, struct.pack("<f", 0)), sform=(QFORM_CODE + 2, b"\0\0")))
    np.testing.assert_allclose(volume.affine, np.diag([1.0, 2, 3, 1]), atol=1e-6)


def test_qform_and_sform_of_one_code_must_agree_and_of_two_codes_need_not() -> None:
    content = encode_nifti(_volume(), compress=False)
    moved = {"srow": (SROW + 12, struct.pack("<f", 300.5))}
    with pytest.raises(GeometryError, match="differently"):
        decode_nifti(_patched(content, **moved))
    aligned = _patched(content, **moved, code=(QFORM_CODE + 2, struct.pack("<h", 2)))
    assert decode_nifti(aligned).affine[0, 3] == 300.5


def test_a_place_is_needed() -> None:
    with pytest.raises(GeometryError, match="where the voxels are"):
        decode_nifti(_patched(encode_nifti(_volume(), compress=False), codes=(QFORM_CODE, bytes(4))))


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_not_a_number_is_refused(value: float, dtype: str) -> None:
    array = np.zeros((3, 3, 3), dtype)
    with np.errstate(over="ignore"):
        array[1, 1, 1] = value
    with pytest.raises(VolumeError, match="1 of 27"):
        decode_nifti(_with_nibabel(nibabel.Nifti1Image, array))


def test_a_scaling_that_overflows_is_refused() -> None:
    content = encode_nifti(_volume(), compress=False)
    for slope in (3e38, np.nan, np.inf):
        with pytest.raises(VolumeError):
            decode_nifti(_patched(content, scl=(SLOPE, struct.pack("<f", slope))))


@pytest.mark.parametrize(
    "patch", [(MAGIC, b"ni1\0"), (DATATYPE, struct.pack("<h", 32)), (DATATYPE, struct.pack("<h", 999))]
)
def test_other_kinds_of_file_are_refused(patch: tuple[int, bytes]) -> None:
    with pytest.raises(VolumeError):
        decode_nifti(_patched(encode_nifti(_volume(), compress=False), patch=patch))


def test_no_such_file(tmp_path: Path) -> None:
    for path in (tmp_path / "none.nii.gz", tmp_path):
        with pytest.raises(NotFoundError):
            read_volume(path)
