"""NIfTI: volumes round-trip, damaged files are rejected."""

from __future__ import annotations

import gzip
import io
import struct
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from gtvray.errors import GeometryError, GtvrayError, TooLargeError, VolumeError
from gtvray.geometry import Volume
from gtvray.io import decode_nifti, encode_nifti, read_open_header, read_volume, write_volume

from .headers import AFFINE, DATATYPE, DIM, MAGIC, PIXDIM, QUATERN, SLOPE, SROW, VOX_OFFSET, made_volume, patched


def _with_nibabel(kind: Any, array: np.ndarray, slope: float = 1.0, inter: float = 0.0, byteorder: str = "<") -> bytes:
    header = kind.header_class(endianness=byteorder)
    header.set_data_dtype(array.dtype.newbyteorder(byteorder))
    image = kind(array, AFFINE, header)
    image.header.set_slope_inter(slope, inter)
    image.set_sform(AFFINE, 1)
    return bytes(image.to_bytes())


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("dtype", ["uint8", "int8", "int16", "uint16", "int32", "float32"])
def test_round_trip(tmp_path: Path, dtype: str, suffix: str) -> None:
    volume = made_volume(dtype)
    write_volume(tmp_path / f"v{suffix}", volume)
    back = read_volume(tmp_path / f"v{suffix}")
    assert back.array.dtype == volume.array.dtype
    np.testing.assert_array_equal(back.array, volume.array)
    # This affine is exact in float32.
    np.testing.assert_array_equal(back.affine, volume.affine)
    assert (tmp_path / f"v{suffix}").read_bytes()[:2] == (
        b"\x1f\x8b" if suffix.endswith("gz") else struct.pack("<h", 348)
    )
    assert [file.name for file in tmp_path.iterdir()] == [f"v{suffix}"]


def test_bool_is_written_as_uint8() -> None:
    mask = made_volume().with_array(made_volume().array > 0)
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
def test_affine_round_trip(angles, spacing_mm, tilt, mirror, shape) -> None:
    affine = np.eye(4)
    turn = Rotation.from_euler("xyz", angles, degrees=True).as_matrix()
    affine[:3, :3] = turn @ [[1, 0, 0], [0, 1, tilt], [0, 0, 1]] @ np.diag(spacing_mm) * [mirror, 1, 1]
    affine[:3, 3] = -321.1, 45.7, 1000.3
    content = encode_nifti(made_volume(shape=shape, affine=affine), compress=False)
    assert decode_nifti(content).same_grid(Volume(np.zeros(shape), affine))
    # Programs that prefer the qform get the same positions, or no qform.
    header = nibabel.Nifti1Image.from_bytes(content).header
    if header["qform_code"] > 0:
        furthest = (header.get_qform() - affine) @ [*np.subtract(shape, 1), 1]
        assert np.abs(furthest).max() < 0.2 * min(spacing_mm)


@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
@pytest.mark.parametrize("order", ["<", ">"])
def test_versions_and_byte_orders(kind: Any, order: str) -> None:
    array = made_volume().array
    volume = decode_nifti(_with_nibabel(kind, array, byteorder=order))
    np.testing.assert_array_equal(volume.array, array)
    assert volume.array.dtype == np.int16
    assert volume.array.dtype.isnative
    np.testing.assert_allclose(volume.affine, AFFINE)


@settings(max_examples=80, deadline=None)
@given(
    st.sampled_from([nibabel.Nifti1Image, nibabel.Nifti2Image]),
    st.sampled_from("<>"),
    st.sampled_from(["u1", "i1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8"]),
    st.tuples(*[st.floats(-180, 180)] * 3),
    st.tuples(*[st.floats(0.1, 9)] * 3),
    st.sampled_from([(0, 1), (1, 0), (1, 1), (2, 1), (1, 4)]),
    st.sampled_from([(1, 0), (1, -1024), (-0.25, 7), (0, 3)]),
    st.booleans(),
)
def test_reading_agrees_with_nibabel(kind, order, dtype, angles, spacing_mm, codes, scaling, compress) -> None:
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", angles, degrees=True).as_matrix() * spacing_mm
    affine[:3, 3] = -321.1, 45.7, 1000.3
    header = kind.header_class(endianness=order)
    header.set_data_dtype(np.dtype(dtype).newbyteorder(order))
    image = kind(made_volume(dtype).array, None, header)
    image.set_qform(affine, codes[0])
    image.set_sform(affine, codes[1])
    content = bytes(image.to_bytes())
    slope_at, number = (SLOPE, "f") if kind is nibabel.Nifti1Image else (176, "d")
    content = patched(content, scl=(slope_at, struct.pack(f"{order}2{number}", *scaling)))
    expected = kind.from_bytes(content)
    volume = decode_nifti(gzip.compress(content) if compress else content)
    np.testing.assert_allclose(volume.affine, expected.affine, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(volume.array, expected.get_fdata(), rtol=1e-6)
    assert volume.array.dtype.isnative


@pytest.mark.parametrize(("slope", "inter"), [(1, -1024), (2.5, 3), (0.5, 0), (-1, 0)])
def test_scaling_is_applied(slope: float, inter: float) -> None:
    content = encode_nifti(made_volume(), compress=False)
    volume = decode_nifti(patched(content, scl=(SLOPE, struct.pack("<2f", slope, inter))))
    assert volume.array.dtype == np.float32
    np.testing.assert_allclose(volume.array, made_volume().array * slope + inter, rtol=1e-6)


def test_zero_slope_means_no_scaling() -> None:
    content = patched(encode_nifti(made_volume(), compress=False), scl=(SLOPE, struct.pack("<2f", 0, 7)))
    np.testing.assert_array_equal(decode_nifti(content).array, made_volume().array)


@pytest.mark.parametrize("compress", [False, True])
def test_truncated_file_is_rejected(tmp_path: Path, compress: bool) -> None:
    content = encode_nifti(made_volume(shape=(20, 20, 8)), compress=compress)
    path = tmp_path / "cut.nii.gz"
    for length in {*range(0, len(content), 97), *range(340, 360), *range(len(content) - 24, len(content))}:
        path.write_bytes(content[:length])
        with pytest.raises(VolumeError):
            read_volume(path)


def test_flipped_bit_in_gzip_stream_is_rejected() -> None:
    """The checksum of the stream is verified up to its end."""
    content = encode_nifti(made_volume(shape=(20, 20, 8)), compress=True)
    original = decode_nifti(content)
    for offset in range(10, len(content), 61):
        changed = patched(content, one=(offset, bytes([content[offset] ^ 0x10])))
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
def test_arbitrary_header_bytes_give_a_volume_or_an_error(offset: int, new: bytes) -> None:
    content = encode_nifti(made_volume(), compress=False)
    try:
        volume = decode_nifti(patched(content, header=(offset, new)), limit_bytes=1 << 20)
    except GtvrayError as error:
        assert "upload" in str(error)  # noqa: PT017
    else:
        assert volume.array.size == 5 * 6 * 7 or offset < DIM + 16
        assert np.isfinite(volume.array).all()


def test_overflowing_sizes_are_rejected() -> None:
    content = _with_nibabel(nibabel.Nifti2Image, made_volume().array)
    dim = struct.pack("<8q", 3, 1 << 32, 1 << 32, 1, 1, 1, 1, 1)
    with pytest.raises((TooLargeError, VolumeError)):
        decode_nifti(patched(content, dim=(16, dim)))


def test_size_limit() -> None:
    content = encode_nifti(made_volume(shape=(30, 30, 30)), compress=True)
    assert decode_nifti(content, limit_bytes=54_000).shape == (30, 30, 30)
    with pytest.raises(TooLargeError):
        decode_nifti(content, limit_bytes=53_999)
    header = patched(encode_nifti(made_volume(), compress=False), dim=(DIM, struct.pack("<4h", 3, 32767, 32767, 32767)))
    with pytest.raises(TooLargeError):
        decode_nifti(header)


@pytest.mark.parametrize("compress", [False, True])
def test_size_beyond_the_file_is_rejected_before_allocation(compress: bool) -> None:
    """One gigabyte is below the size limit, but above the maximum expansion of deflate, 1032 times the file size."""
    dim = (DIM + 2, struct.pack("<3h", 1000, 1000, 500))
    content = patched(encode_nifti(made_volume(), compress=False), dim=dim)
    content = gzip.compress(content) if compress else content
    with pytest.raises(VolumeError, match="truncated") as caught:
        decode_nifti(content)
    most = 1032 * len(content) if compress else 5 * 6 * 7 * 2
    assert caught.value.fields["found"] == f"at most {most}"


def test_header_is_refused_for_the_same_reason_with_and_without_voxels() -> None:
    """A wrong affine and trailing bytes: the endpoint, which reads the header first, and `predict` give one answer."""
    content = patched(encode_nifti(made_volume(), compress=False), srow=(SROW, bytes(48))) + b"more"
    with pytest.raises(GeometryError) as offline:
        decode_nifti(content)
    with pytest.raises(GeometryError) as online:
        read_open_header(io.BytesIO(content), "upload")
    assert offline.value.what == online.value.what


@pytest.mark.parametrize("flag", [b"\x08", b"\x10"])
def test_overlong_name_or_comment_of_a_gzip_stream_is_rejected(flag: bytes) -> None:
    compressed = gzip.compress(encode_nifti(made_volume(), compress=False), mtime=0)
    with pytest.raises(VolumeError, match="gzip stream is damaged"):
        decode_nifti(compressed[:3] + flag + compressed[4:10] + b"n" * (1 << 20) + b"\0" + compressed[10:])


def test_overlong_gzip_stream_is_rejected() -> None:
    bomb = gzip.compress(encode_nifti(made_volume(), compress=False) + bytes(2 << 20))
    with pytest.raises(VolumeError, match="longer"):
        decode_nifti(bomb)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_nan_and_infinity_are_rejected(value: float, dtype: str) -> None:
    array = np.zeros((3, 3, 3), dtype)
    with np.errstate(over="ignore"):
        array[1, 1, 1] = value
    with pytest.raises(VolumeError, match="1 of 27"):
        decode_nifti(_with_nibabel(nibabel.Nifti1Image, array))


def test_overflowing_scaling_is_rejected() -> None:
    content = encode_nifti(made_volume(), compress=False)
    for slope in (3e38, np.nan, np.inf, -np.inf):
        with pytest.raises(VolumeError):
            decode_nifti(patched(content, scl=(SLOPE, struct.pack("<f", slope))))


@pytest.mark.parametrize(
    "patch", [(MAGIC, b"ni1\0"), (DATATYPE, struct.pack("<h", 32)), (DATATYPE, struct.pack("<h", 999))]
)
def test_unsupported_formats_are_rejected(patch: tuple[int, bytes]) -> None:
    with pytest.raises(VolumeError):
        decode_nifti(patched(encode_nifti(made_volume(), compress=False), patch=patch))


@pytest.mark.parametrize("offset", [0, 348, 351, 352.5, 353, 368, 336, 1 << 25])
def test_wrong_voxel_offset_is_rejected(offset: float) -> None:
    content = encode_nifti(made_volume(), compress=False)
    with pytest.raises(VolumeError, match=r"offset|truncated"):
        decode_nifti(patched(content, offset=(VOX_OFFSET, struct.pack("<f", offset))))


@pytest.mark.parametrize("size", [16, 4096, 1 << 20])
def test_header_extensions_are_ignored(size: int) -> None:
    volume = made_volume()
    image = nibabel.Nifti1Image.from_bytes(encode_nifti(volume, compress=False))
    image.header.extensions.append(nibabel.nifti1.Nifti1Extension(6, b"n" * (size - 8)))
    back = decode_nifti(bytes(image.to_bytes()))
    np.testing.assert_array_equal(back.array, volume.array)


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("more", [b"\0", b"garbage", bytes(5 * 6 * 2)])
def test_trailing_bytes_are_rejected(compress: bool, more: bytes) -> None:
    """They may be voxels that a damaged size in the header excludes."""
    content = encode_nifti(made_volume(), compress=False) + more
    with pytest.raises(VolumeError, match="longer") as caught:
        decode_nifti(gzip.compress(content) if compress else content)
    assert caught.value.fields["expected"] == "420 bytes of voxels for 5 x 6 x 7 of int16"


def test_gzip_members_and_padding_are_accepted() -> None:
    content = encode_nifti(made_volume(), compress=False)
    for parts in [(content[:200], content[200:500], content[500:]), (b"", content), (content, b"")]:
        stream = b"".join(gzip.compress(part) for part in parts)
        for padding in (b"", bytes(512)):
            np.testing.assert_array_equal(decode_nifti(stream + padding).array, made_volume().array)
    with pytest.raises(VolumeError, match="damaged"):
        decode_nifti(gzip.compress(content) + b"garbage")
    with pytest.raises(VolumeError, match="not a NIfTI"):
        decode_nifti(gzip.compress(gzip.compress(content)))


@pytest.mark.parametrize("dtype", ["int64", "uint64", "float64"])
def test_64_bit_types_round_trip(dtype: str) -> None:
    back = decode_nifti(encode_nifti(made_volume(dtype), compress=False))
    assert back.array.dtype == ("float32" if dtype == "float64" else dtype)
    np.testing.assert_array_equal(back.array, made_volume(dtype).array)


@pytest.mark.parametrize("bits", [8, 32, -16])
def test_bitpix_must_match_datatype(bits: int) -> None:
    content = encode_nifti(made_volume(), compress=False)
    with pytest.raises(VolumeError, match="bitpix"):
        decode_nifti(patched(content, bitpix=(DATATYPE + 2, struct.pack("<h", bits))))
    unset = patched(content, bitpix=(DATATYPE + 2, bytes(2)))
    np.testing.assert_array_equal(decode_nifti(unset).array, made_volume().array)


@pytest.mark.parametrize("dim", [(0, 5, 6, 7), (2, 5, 6, 7), (8, 5, 6, 7), (-3, 5, 6, 7), (3, 5, -6, 7), (3, 5, 6, 0)])
def test_invalid_dimensions_are_rejected(dim: tuple[int, ...]) -> None:
    content = encode_nifti(made_volume(), compress=False)
    with pytest.raises(VolumeError, match="three-dimensional") as caught:
        decode_nifti(patched(content, dim=(DIM, struct.pack("<4h", *dim))))
    assert str(list(dim))[1:-1] in caught.value.fields["found"]


def test_header_of_a_pair_is_rejected() -> None:
    for magic, kind, offset in [
        (b"ni1\0", nibabel.Nifti1Image, MAGIC),
        (b"ni2\0\r\n\x1a\n", nibabel.Nifti2Image, 4),
    ]:
        header = patched(_with_nibabel(kind, made_volume().array), magic=(offset, magic))
        with pytest.raises(VolumeError, match="NIfTI pair"):
            decode_nifti(header)


def test_nifti_2_magic_detects_converted_line_endings() -> None:
    content = _with_nibabel(nibabel.Nifti2Image, made_volume().array)
    with pytest.raises(VolumeError, match="magic"):
        decode_nifti(patched(content, magic=(8, b"\n\n\x1a\n")))


def test_two_nan_mean_no_scaling_and_one_is_rejected() -> None:
    """nibabel sets both to NaN for no scaling, which other programs accept."""
    content = encode_nifti(made_volume(), compress=False)
    unset = patched(content, scl=(SLOPE, struct.pack("<2f", np.nan, np.nan)))
    np.testing.assert_array_equal(decode_nifti(unset).array, made_volume().array)
    for pair in [(np.nan, 0), (1, np.nan), (2, np.inf)]:
        with pytest.raises(VolumeError, match="scaling"):
            decode_nifti(patched(content, scl=(SLOPE, struct.pack("<2f", *pair))))
