"""NRRD: headers of common programs against values computed by hand, and invalid headers."""

from __future__ import annotations

import bz2
import gzip
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from gtvray.errors import GeometryError, InputError, NotFoundError, TooLargeError, VolumeError
from gtvray.geometry import Volume
from gtvray.io import decode_volume, encode_nrrd, read_volume, write_volume

ARRAY = np.arange(-30, 30, dtype="<i2").reshape(3, 4, 5)
VOXELS = ARRAY.tobytes(order="F")
# As written by 3D Slicer and ITK, for a grid rotated by 90 degrees about the axis of the body.
FIELDS = {
    "type": "short",
    "dimension": "3",
    "space": "left-posterior-superior",
    "sizes": "3 4 5",
    "space directions": "(0,0.5,0) (-0.75,0,0) (0,0,2.5)",
    "kinds": "domain domain domain",
    "endian": "little",
    "encoding": "raw",
    "space origin": "(-10.25,20,-700.125)",
}
# Computed by hand: LPS to RAS negates the first two rows.
AFFINE = np.array([[0, 0.75, 0, 10.25], [-0.5, 0, 0, -20], [0, 0, 2.5, -700.125], [0, 0, 0, 1]])


def _header(changes: dict[str, str | None] | None = None, *, magic: str = "NRRD0004", end: str = "\n") -> bytes:
    fields = {**FIELDS, **(changes or {})}
    lines = [magic, "# a comment: ignored", *(f"{name}: {text}" for name, text in fields.items() if text is not None)]
    return end.join([*lines, "", ""]).encode()


def _check(volume: Volume, affine: np.ndarray = AFFINE, array: np.ndarray = ARRAY) -> None:
    np.testing.assert_array_equal(volume.array, array)
    np.testing.assert_allclose(volume.affine, affine, atol=1e-12)
    assert volume.array.dtype == array.dtype
    assert volume.array.dtype.isnative


@pytest.mark.parametrize("magic", ["NRRD0001", "NRRD0004", "NRRD0005"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_header_of_3d_slicer(magic: str, end: str) -> None:
    volume = decode_volume(_header(magic=magic, end=end) + VOXELS)
    _check(volume)
    assert volume.orientation == "PRS"
    assert volume.spacing_mm == (0.5, 0.75, 2.5)
    # Value and position of voxel (1, 2, 3), computed by hand.
    assert volume.array[1, 2, 3] == -30 + 1 * 20 + 2 * 5 + 3
    np.testing.assert_allclose(volume.affine @ [1, 2, 3, 1], [11.75, -20.5, -692.625, 1])


@pytest.mark.parametrize(
    ("space", "signs"),
    [
        ("LPS", (1, 1, 1)),
        ("Left-Posterior-Superior", (1, 1, 1)),
        ("RAS", (-1, -1, 1)),
        ("right-anterior-superior", (-1, -1, 1)),
        ("LAS", (1, -1, 1)),
        ("left-anterior-superior", (1, -1, 1)),
    ],
)
def test_patient_spaces(space: str, signs: tuple[int, int, int]) -> None:
    _check(decode_volume(_header({"space": space}) + VOXELS), np.diag([*signs, 1]) @ AFFINE)


@pytest.mark.parametrize("space", ["scanner-xyz", "3D-right-handed", "3D-left-handed", "left-posterior-superior-time"])
def test_other_spaces_are_rejected(space: str) -> None:
    with pytest.raises(VolumeError, match="'space'") as caught:
        decode_volume(_header({"space": space}) + VOXELS)
    assert caught.value.fields["found"] == space


@pytest.mark.parametrize("missing", ["space", "space directions", "space origin"])
def test_missing_affine_is_rejected(missing: str) -> None:
    changes: dict[str, str | None] = {missing: None, "spacings": "1 1 1"}
    with pytest.raises(GeometryError, match="no affine") as caught:
        decode_volume(_header(changes) + VOXELS)
    assert caught.value.fields["found"] == f"no {missing}"


@pytest.mark.parametrize(
    ("units", "factor"), [('"mm" "mm" "mm"', 1), ('"cm" "cm" "cm"', 10), ('"um" "um" "um"', 0.001)]
)
def test_space_units_are_applied(units: str, factor: float) -> None:
    numbers = {
        "space directions": " ".join(f"({x / factor},{y / factor},{z / factor})" for x, y, z in
                                     [(0, 0.5, 0), (-0.75, 0, 0), (0, 0, 2.5)]),
        "space origin": f"({-10.25 / factor},{20 / factor},{-700.125 / factor})",
    }  # fmt: skip
    _check(decode_volume(_header({"space units": units, **numbers}) + VOXELS))


def test_spacings_must_match_direction_lengths() -> None:
    for spacings in ("0.5 0.75 2.5", "nan nan nan", "NaN 0.75 2.51"):
        _check(decode_volume(_header({"spacings": spacings}) + VOXELS))
    with pytest.raises(GeometryError, match="spacings") as caught:
        decode_volume(_header({"spacings": "1 1 1"}) + VOXELS)
    assert caught.value.fields["found"] == f"1 1 1, and directions {FIELDS['space directions']}"
    for spacings in ("1 1", "1 1 x"):
        with pytest.raises(VolumeError, match="spacings"):
            decode_volume(_header({"spacings": spacings}) + VOXELS)


@pytest.mark.parametrize("name", ["int16", "signed short int", "Short"])
def test_type_names(name: str) -> None:
    _check(decode_volume(_header({"type": name}) + VOXELS))


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("signed char", "i1"), ("uchar", "u1"), ("ushort", "u2"), ("int", "i4"), ("unsigned int", "u4"),
     ("long long int", "i8"), ("ulonglong", "u8"), ("float", "f4"), ("double", "f8")],
)  # fmt: skip
@pytest.mark.parametrize("order", ["little", "big"])
def test_types_and_byte_orders(name: str, dtype: str, order: str) -> None:
    array = (ARRAY + 30).astype(dtype)
    stored = array.astype(array.dtype.newbyteorder("<" if order == "little" else ">")).tobytes(order="F")
    volume = decode_volume(_header({"type": name, "endian": order}) + stored)
    _check(volume, AFFINE, array.astype("f4") if dtype == "f8" else array)


def test_endian_is_required_for_multi_byte_types() -> None:
    array = (ARRAY + 30).astype("u1")
    _check(decode_volume(_header({"type": "uchar", "endian": None}) + array.tobytes(order="F")), AFFINE, array)
    with pytest.raises(VolumeError, match="lacks a field") as caught:
        decode_volume(_header({"endian": None}) + VOXELS)
    assert caught.value.fields["expected"] == "endian"


@pytest.mark.parametrize("encoding", ["gzip", "gz", "GZIP"])
def test_gzipped_voxels(encoding: str) -> None:
    header = _header({"encoding": encoding})
    _check(decode_volume(header + gzip.compress(VOXELS)))
    _check(decode_volume(header + gzip.compress(VOXELS[:50]) + gzip.compress(VOXELS[50:])))
    stream = gzip.compress(VOXELS)
    for length in range(len(stream)):
        with pytest.raises(VolumeError):
            decode_volume(header + stream[:length])
    # The last eight bytes are checksum and length.
    for offset in range(10, len(stream)):
        flipped = bytearray(stream)
        flipped[offset] ^= 4
        with pytest.raises(VolumeError):
            decode_volume(header + bytes(flipped))


@pytest.mark.parametrize("encoding", ["ascii", "hex", "bzip2", "zstd", ""])
def test_other_encodings_are_rejected(encoding: str) -> None:
    with pytest.raises(VolumeError, match="encoding") as caught:
        decode_volume(_header({"encoding": encoding}) + bz2.compress(VOXELS))
    assert caught.value.fields["expected"] == "one of raw, gzip, gz"


def test_slicer_segmentation_is_read_as_labels() -> None:
    labels = np.zeros((3, 4, 5), np.uint8)
    labels[1, 2, 3] = 1
    texts = [
        "Segment0_Color:=0.501961 0.682353 0.501961",
        "Segment0_ID:=Segment_1",
        "Segment0_LabelValue:=1",
        "Segment0_Layer:=0",
        "Segment0_Name:=GTV: primär",
        "Segment0_Tags:=Segmentation.Status:inprogress|TerminologyEntry:Segmentation category~SCT^123^Tissue|",
        "Segmentation_MasterRepresentation:=Binary labelmap",
        "Segmentation_ReferenceImageExtentOffset:=0 0 0",
    ]
    header = _header({"type": "unsigned char", "encoding": "gzip", "endian": None})[:-1]
    content = header + "\n".join([*texts, "", ""]).encode() + gzip.compress(labels.tobytes(order="F"))
    _check(decode_volume(content), AFFINE, labels)


def test_non_spatial_axis_must_have_one_sample() -> None:
    four = {
        "dimension": "4",
        "kinds": "list domain domain domain",
        "space directions": "none (0,0.5,0) (-0.75,0,0) (0,0,2.5)",
    }
    _check(decode_volume(_header({**four, "sizes": "1 3 4 5"}) + VOXELS))
    with pytest.raises(VolumeError, match="three-dimensional") as caught:
        decode_volume(_header({**four, "sizes": "2 3 4 5"}) + VOXELS * 2)
    assert "sizes 2 3 4 5" in caught.value.fields["found"]


@pytest.mark.parametrize(
    ("field", "text"),
    [
        ("dimension", "4"),
        ("dimension", "2"),
        ("dimension", "-3"),
        ("dimension", "99999999999999999999"),
        ("dimension", None),
        ("sizes", "3 4"),
        ("sizes", "3 4 5 1"),
        ("sizes", "3 4 -5"),
        ("sizes", "3 4 0"),
        ("sizes", "3 4 5.0"),
        ("sizes", "3 4 6"),
        ("sizes", "3 4 4"),
        ("sizes", "3 4 1_5"),
        ("sizes", None),
        ("type", "block"),
        ("type", "long"),
        ("type", "int"),
        ("type", "uchar"),
        ("type", None),
        ("endian", "middle"),
        ("encoding", None),
        ("kinds", "domain domain"),
        ("space dimension", "4"),
        ("space units", '"mm" "mm"'),
        ("space units", '"furlong" "mm" "mm"'),
        ("space directions", "(0,0.5,0) (-0.75,0,0)"),
        ("space directions", "(0,0.5,0) (-0.75,0,0) none"),
        ("space directions", "(0,0.5) (-0.75,0) (0,1)"),
        ("space directions", "(0,0.5,0) (-0.75,0,0) (0,0,2.5) x"),
        ("space directions", "(0,0.5,0) (-0.75,0,0) (0,0,1_0)"),
        ("space directions", "(0,0.5,0) (-0.75,0,0) (0,0,)"),
        ("space directions", "(0,0.5,0) (-0.75,0,0) (0,0,nan)"),
        ("space directions", "(0,0.5,0) (-0.75,0,0) (0,0,250)"),
        ("space directions", "(0,0.5,0) (0,0.5,0) (0,0,2.5)"),
        ("space directions", "(0,0.5,0) (-0.75,0,0) (0,0,1e200)"),
        ("space directions", "(0,0.5,0) (-0.75,0,0) (0,0,1e999)"),
        ("space origin", "none"),
        ("space origin", "(0,0)"),
        ("space origin", "(inf,0,0)"),
        ("space origin", "(1e30,0,0)"),
        ("line skip", "1"),
        ("byte skip", "-1"),
        ("byte skip", "1"),
        ("byte skip", "99999999999"),
        ("colour", "red"),
        ("Sizes", "3 4 5"),
        ("data file", "other.raw"),
    ],
)
def test_invalid_field_is_rejected(field: str, text: str | None) -> None:
    with pytest.raises(InputError) as caught:
        decode_volume(_header({field: text}) + VOXELS, "scan.nrrd")
    assert caught.value.fields["where"] == "scan.nrrd"


def test_wrong_number_of_bytes_is_rejected() -> None:
    for content, what in [(VOXELS[:-1], "truncated"), (VOXELS + b"\0", "longer"), (b"", "truncated")]:
        with pytest.raises(VolumeError, match=what):
            decode_volume(_header() + content)
    with pytest.raises(VolumeError):
        decode_volume(_header()[:-1] + VOXELS)
    with pytest.raises(TooLargeError):
        decode_volume(_header({"sizes": "3000 4000 5000"}) + VOXELS)
    with pytest.raises(VolumeError, match="truncated"):
        decode_volume(_header({"sizes": "300 400 500", "encoding": "gzip"}) + gzip.compress(VOXELS))


@pytest.mark.parametrize(
    "text", ["1" * 500_000 + "x", "1" * 500_000, "(" * 900_000, '"' * 899_999, "(1,2,3)" * 100_000]
)
@pytest.mark.parametrize("field", ["space directions", "space origin", "sizes", "space units", "spacings", "kinds"])
def test_long_fields_are_rejected_in_linear_time(field: str, text: str) -> None:
    for value in (text, f"({text},0,0)"):
        with pytest.raises(InputError):
            decode_volume(_header({field: value}) + VOXELS)


def test_number_formats() -> None:
    changes: dict[str, str | None] = {
        "space directions": "( 0 , +5.e-1 ,-0.0) (-7.5E-01,0,0) (0,.0, 2.50000000000000000)",
        "space origin": "(-10.25, 2e1, -700.125)",
    }
    _check(decode_volume(_header(changes) + VOXELS))


def test_unterminated_header_is_rejected() -> None:
    with pytest.raises(VolumeError, match="too long"):
        decode_volume(_header()[:-1] + b"k:=" + b"x" * (2 << 20))
    with pytest.raises(VolumeError, match="too long"):
        decode_volume(_header()[:-1] + b"#\n" * (1 << 20))
    # 80 kB, which gzip makes one hundred bytes of.
    with pytest.raises(VolumeError, match="too long"):
        decode_volume(_header()[:-1] + b"#\n" * 40_000 + b"\n" + VOXELS)
    for magic in ("NRRD0006", "NRRD00041", "NRRD", "NRRD0004 "):
        with pytest.raises(VolumeError, match="not an NRRD"):
            decode_volume(_header(magic=magic) + VOXELS)


def test_overlong_header_of_gzipped_voxels_is_rejected() -> None:
    named = gzip.compress(VOXELS)[:3] + b"\x08" + bytes(6) + b"n" * (1 << 20)
    with pytest.raises(VolumeError, match="gzip stream is damaged"):
        decode_volume(_header({"encoding": "gzip"}) + named)


def test_byte_skip() -> None:
    _check(decode_volume(_header({"byte skip": "7"}) + b"1234567" + VOXELS))
    _check(decode_volume(_header({"byteskip": "7", "encoding": "gzip"}) + gzip.compress(b"1234567" + VOXELS)))


@pytest.mark.parametrize("field", ["data file", "datafile"])
@pytest.mark.parametrize("name", ["a.raw", "voxels/a b.raw", "./a.raw"])
def test_detached_data_file(tmp_path: Path, field: str, name: str) -> None:
    (tmp_path / "a.nhdr").write_bytes(_header({field: name})[:-1])
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(VOXELS)
    _check(read_volume(tmp_path / "a.nhdr"))
    (tmp_path / "a.nhdr").write_bytes(_header({field: name, "encoding": "gzip"}))
    with pytest.raises(VolumeError, match="damaged"):
        read_volume(tmp_path / "a.nhdr")
    (tmp_path / name).write_bytes(gzip.compress(VOXELS))
    _check(read_volume(tmp_path / "a.nhdr"))
    (tmp_path / name).write_bytes(gzip.compress(VOXELS)[:-1])
    with pytest.raises(VolumeError) as caught:
        read_volume(tmp_path / "a.nhdr")
    assert caught.value.fields["where"] == str(tmp_path / name)
    (tmp_path / name).unlink()
    with pytest.raises(NotFoundError):
        read_volume(tmp_path / "a.nhdr")


def test_detached_data_file_with_windows_path(tmp_path: Path) -> None:
    (tmp_path / "voxels").mkdir()
    (tmp_path / "voxels" / "a.raw").write_bytes(VOXELS)
    (tmp_path / "a.nhdr").write_bytes(_header({"data file": ".\\Voxels\\A.RAW"}))
    _check(read_volume(tmp_path / "a.nhdr"))


@pytest.mark.parametrize(
    "name",
    ["../a.raw", "b/../../a.raw", "{outside}/a.raw", "..\\a.raw", "C:\\a.raw", "C:a.raw", "\\\\host\\a.raw", "LIST",
     "LIST 2", "a%02d.raw 1 5 1", ""],
)  # fmt: skip
def test_data_file_outside_the_folder_is_rejected(tmp_path: Path, name: str) -> None:
    (tmp_path / "a.raw").write_bytes(VOXELS)
    inside = tmp_path / "in"
    inside.mkdir()
    (inside / "a.nhdr").write_bytes(_header({"data file": name.format(outside=tmp_path)}))
    with pytest.raises(VolumeError, match="data file"):
        read_volume(inside / "a.nhdr")


def test_only_nhdr_may_have_a_data_file(tmp_path: Path) -> None:
    """The digest of any other file must cover its voxels."""
    (tmp_path / "a.raw").write_bytes(VOXELS)
    for name in ("a.nhdr", "A.NHDR"):
        (tmp_path / name).write_bytes(_header({"data file": "a.raw"}))
        _check(read_volume(tmp_path / name))
    for name in ("a.nrrd", "a.nii.gz", "a"):
        (tmp_path / name).write_bytes(_header({"data file": "a.raw"}))
        with pytest.raises(VolumeError, match="data file"):
            read_volume(tmp_path / name)


def test_pipe_as_data_file_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.raw")
    (tmp_path / "a.nhdr").write_bytes(_header({"data file": "a.raw"}))
    with pytest.raises(VolumeError, match="not a regular file"):
        read_volume(tmp_path / "a.nhdr")


@settings(max_examples=100, deadline=None)
@given(
    st.tuples(*[st.floats(-180, 180)] * 3),
    st.tuples(*[st.floats(0.06, 19)] * 3),
    st.tuples(*[st.floats(-9e4, 9e4)] * 3),
    st.sampled_from([0, 0.2]),
    st.sampled_from([1, -1]),
)
def test_affine_round_trip_is_exact(angles, spacing_mm, origin_mm, tilt, mirror) -> None:
    affine = np.eye(4)
    turn = Rotation.from_euler("xyz", angles, degrees=True).as_matrix()
    affine[:3, :3] = turn @ [[1, 0, 0], [0, 1, tilt], [0, 0, 1]] @ np.diag(spacing_mm) * [mirror, 1, 1]
    affine[:3, 3] = origin_mm
    back = decode_volume(encode_nrrd(Volume(ARRAY, affine)))
    np.testing.assert_array_equal(back.affine, affine)
    np.testing.assert_array_equal(back.array, ARRAY)


def test_overflowing_unit_is_rejected() -> None:
    changes: dict[str, str | None] = {"space units": '"m" "m" "m"', "space origin": "(1e306,0,0)"}
    with pytest.raises(GeometryError):
        decode_volume(_header(changes) + VOXELS)


def test_real_scan_is_equal_in_both_formats(real_cases: Path, tmp_path: Path) -> None:
    scan = read_volume(real_cases / "pt_1" / "data.nii.gz")
    write_volume(tmp_path / "scan.nrrd", scan)
    back = read_volume(tmp_path / "scan.nrrd")
    np.testing.assert_array_equal(back.array, scan.array)
    np.testing.assert_array_equal(back.affine, scan.affine)


def test_nan_and_infinity_are_rejected() -> None:
    array = np.zeros((3, 4, 5), "<f4")
    array[0, 1, 2] = np.nan
    with pytest.raises(VolumeError, match="1 of 60"):
        decode_volume(_header({"type": "float"}) + array.tobytes())
