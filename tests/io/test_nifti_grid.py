"""The affine of a NIfTI header: contradictory and implausible values are rejected."""

from __future__ import annotations

import struct

import nibabel
import numpy as np
import pytest

from gtvray.errors import GeometryError, InputError
from gtvray.io import decode_nifti, encode_nifti

from .headers import AFFINE, PIXDIM, QFORM_CODE, SLOPE, SROW, XYZT_UNITS, made_volume, patched


def test_qfac_of_zero_is_read_as_one() -> None:
    """As specified by the standard; some scanners write it."""
    content = encode_nifti(made_volume(affine=np.diag([1.0, 2, 3, 1])), compress=False)
    volume = decode_nifti(patched(content, qfac=(PIXDIM, struct.pack("<f", 0)), sform=(QFORM_CODE + 2, b"\0\0")))
    np.testing.assert_allclose(volume.affine, np.diag([1.0, 2, 3, 1]), atol=1e-6)


@pytest.mark.parametrize("sform_code", [1, 2, 4])
def test_qform_and_sform_must_agree_for_any_codes(sform_code: int) -> None:
    """ITK and nibabel prefer different ones, depending on the codes."""
    code = (QFORM_CODE + 2, struct.pack("<h", sform_code))
    content = patched(encode_nifti(made_volume(), compress=False), code=code)
    np.testing.assert_array_equal(decode_nifti(content).affine, AFFINE)
    moved = patched(content, srow=(SROW + 12, struct.pack("<f", 300.5)))
    with pytest.raises(GeometryError, match="different voxel positions") as caught:
        decode_nifti(moved)
    assert caught.value.fields["found"] == f"50.0 mm apart (qform_code 1, sform_code {sform_code})"
    one = patched(moved, code=(QFORM_CODE, bytes(2)))
    assert decode_nifti(one).affine[0, 3] == 300.5


def test_missing_affine_is_rejected() -> None:
    with pytest.raises(GeometryError, match="no affine"):
        decode_nifti(patched(encode_nifti(made_volume(), compress=False), codes=(QFORM_CODE, bytes(4))))


@pytest.mark.parametrize(
    ("pixdim", "found"),
    [
        ((1, 1, 1), "1 x 1 x 1 mm in pixdim, 0.9766 x 0.9766 x 2.5 mm in the sform"),
        ((97.65625, 97.65625, 250), "97.66 x 97.66 x 250 mm in pixdim"),
        ((0.9765625, 0.9765625, 2.53), "2.53 mm in pixdim"),
        ((0, 0.9765625, 2.5), "0 x 0.9766 x 2.5"),
        ((np.nan, 1, 1), "nan x 1 x 1"),
        ((0.9765625, np.inf, 2.5), "inf"),
    ],
)
def test_pixdim_must_match_the_sform(pixdim: tuple[float, ...], found: str) -> None:
    """ITK reads the spacing from pixdim, nibabel from the sform."""
    content = patched(
        encode_nifti(made_volume(), compress=False),
        pixdim=(PIXDIM + 4, struct.pack("<3f", *pixdim)),
        code=(QFORM_CODE, bytes(2)),
    )
    with pytest.raises(GeometryError, match="spacing") as caught:
        decode_nifti(content)
    assert found in caught.value.fields["found"]


def test_pixdim_may_be_rounded_negative_or_the_plane_distance_of_a_tilted_gantry() -> None:
    content = patched(encode_nifti(made_volume(), compress=False), code=(QFORM_CODE, bytes(2)))
    for pixdim in [(0.977, 0.98, 2.5), (-0.9765625, 0.9765625, -2.5)]:
        rounded = patched(content, pixdim=(PIXDIM + 4, struct.pack("<3f", *pixdim)))
        np.testing.assert_array_equal(decode_nifti(rounded).affine, AFFINE)
    tilted = AFFINE.copy()
    tilted[1, 2] = 2.5 * np.tan(np.radians(15))
    content = encode_nifti(made_volume(affine=tilted), compress=False)
    for distance_mm in (2.5, 2.5 / np.cos(np.radians(15))):
        either = patched(content, pixdim=(PIXDIM + 12, struct.pack("<f", distance_mm)))
        np.testing.assert_allclose(decode_nifti(either).affine, tilted, rtol=1e-6)
    with pytest.raises(GeometryError):
        decode_nifti(patched(content, pixdim=(PIXDIM + 12, struct.pack("<f", 2.4))))


@pytest.mark.parametrize("degrees", [0.5, 5, 15, -25])
def test_qform_of_a_sheared_sform_may_be_the_nearest_rotation(degrees: float) -> None:
    """Converters write a tilted gantry like this, because only the sform can represent it."""
    sheared = AFFINE.copy()
    sheared[1, 2] = 2.5 * np.tan(np.radians(degrees))
    image = nibabel.Nifti1Image(made_volume(shape=(50, 60, 90)).array, None)
    image.set_sform(sheared, 1)
    image.set_qform(sheared, 1)
    content = bytes(image.to_bytes())
    np.testing.assert_allclose(decode_nifti(content).affine, sheared, rtol=1e-6)
    # A different tilt, a reflection and a translation remain contradictions.
    less = AFFINE.copy()
    less[1, 2] = 2.5 * np.tan(np.radians(degrees / 2))
    if abs(degrees) > 1:
        image.set_qform(less, 1, update_affine=False)
        with pytest.raises(GeometryError, match=r"different voxel (positions|spacings)"):
            decode_nifti(bytes(image.to_bytes()))
    mirrored, moved = sheared @ np.diag([1, 1, -1, 1]), sheared + 3 * np.eye(4, k=3)
    for other in (mirrored, moved):
        image.set_qform(other, 1, update_affine=False)
        with pytest.raises(GeometryError, match="different voxel positions"):
            decode_nifti(bytes(image.to_bytes()))


@pytest.mark.parametrize(("unit", "factor"), [(0, 1), (1, 1000), (2, 1), (3, 0.001), (5, 1), (10, 1)])
def test_unit_of_length_is_applied(unit: int, factor: float) -> None:
    """Unknown and undefined units mean millimetres; the bits of the time unit are ignored."""
    scaled = AFFINE.copy()
    scaled[:3] /= factor
    image = nibabel.Nifti1Image(made_volume().array, None)
    image.set_sform(scaled, 1)
    image.set_qform(scaled, 1)
    content = patched(bytes(image.to_bytes()), unit=(XYZT_UNITS, bytes([unit])))
    np.testing.assert_allclose(decode_nifti(content).affine, AFFINE, rtol=1e-6)


@pytest.mark.parametrize(("unit", "named"), [(1, "metres"), (3, "micrometres")])
def test_implausible_spacing_names_the_unit(unit: int, named: str) -> None:
    content = patched(encode_nifti(made_volume(), compress=False), unit=(XYZT_UNITS, bytes([unit])))
    with pytest.raises(GeometryError, match="plausible") as caught:
        decode_nifti(content)
    assert caught.value.fields["found"] == f"0.9766 x 0.9766 x 2.5 in {named} (pixdim, xyzt_units)"


def test_undefined_codes_are_rejected() -> None:
    content = encode_nifti(made_volume(), compress=False)
    for offset, code in [(QFORM_CODE, 77), (QFORM_CODE, -1), (QFORM_CODE + 2, 6), (QFORM_CODE + 2, 257)]:
        with pytest.raises(GeometryError, match="_code") as caught:
            decode_nifti(patched(content, code=(offset, struct.pack("<h", code))))
        assert caught.value.fields["found"] == str(code)


def test_any_flipped_header_bit_is_rejected_or_harmless() -> None:
    """Except in the intensity scaling, which is not redundant."""
    volume = made_volume(shape=(4, 5, 6))
    content = encode_nifti(volume, compress=False)
    rejected = 0
    for offset in sorted(set(range(352)) - set(range(SLOPE, SLOPE + 8))):
        for bit in range(8):
            try:
                back = decode_nifti(patched(content, one=(offset, bytes([content[offset] ^ 1 << bit]))))
            except InputError:
                rejected += 1
                continue
            assert back.shape == volume.shape, (offset, bit)
            np.testing.assert_array_equal(back.array, volume.array, err_msg=str((offset, bit)))
            corner = (back.affine - volume.affine) @ [[0, 3], [0, 4], [0, 5], [1, 1]]
            assert np.abs(corner).max() <= 0.5, (offset, bit)
    assert rejected > 400
