"""The body crop, its notes, and masks restored from any grid."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from scipy.spatial.transform import Rotation

from gtvray.config import PreprocessingConfig
from gtvray.geometry import Volume, is_sheared, resample_to_grid
from gtvray.io import read_volume
from gtvray.preprocessing import AIR_HU, cut_off_share, prepare, prepare_mask, restore_mask

COARSE = PreprocessingConfig(spacing_mm=(8.0, 8.0, 8.0))


def _patient(shape: tuple[int, int, int] = (60, 50, 40)) -> np.ndarray:
    """An ellipsoid of tissue in air, HU."""
    i, j, k = np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij")
    return np.where((i / 0.7) ** 2 + (j / 0.7) ** 2 + (k / 0.9) ** 2 < 1, 40, -1000).astype(np.int16)


def _kept(hu: np.ndarray, where: np.ndarray, affine: np.ndarray | None = None) -> float:
    scan = Volume(hu, np.diag([3.0, 3.0, 3.0, 1.0]) if affine is None else affine)
    return 1 - cut_off_share(scan.with_array(where.astype(np.uint8)), prepare(scan, COARSE))


def _assert_not_cropped(image: Path, label: Path) -> None:
    scan, mask = read_volume(image), read_volume(label)
    prepared = prepare(scan, COARSE)
    assert cut_off_share(mask, prepared) == 0, image
    assert prepared.notes == (), image
    # Also counted on the reoriented scan, which was cropped.
    crop = prepared.crop
    assert crop is not None
    upright = mask.reoriented("RAS").array > 0
    assert np.count_nonzero(upright) == np.count_nonzero(upright[crop.slices]), image


def test_crop_keeps_the_tumour_of_real_scans(real_cases: Path, shared_data: Path) -> None:
    for case in sorted(real_cases.iterdir())[::12]:
        _assert_not_cropped(case / "data.nii.gz", case / "label.nii.gz")
    for case in (shared_data / "sarcoma_gtv").glob("STS_*"):
        _assert_not_cropped(case / "nifti" / "CT_image.nii.gz", case / "nifti" / "CT_mask.nii.gz")
    lung = shared_data / "lung_gtv" / "cancerdata_pat_1" / "nifti"
    _assert_not_cropped(lung / "image" / "phantom.nii.gz", lung / "mask" / "mask.nii.gz")


@pytest.mark.slow
def test_crop_keeps_the_tumour_of_all_real_scans(real_cases: Path) -> None:
    cases = [*real_cases.iterdir(), *(real_cases.parent / "val").iterdir()]
    for case in cases:
        if case.is_dir():
            _assert_not_cropped(case / "data.nii.gz", case / "label.nii.gz")


@pytest.mark.parametrize("thing", ["couch", "touching couch", "cushion", "metal", "holder", "cut", "noise", "padding"])
def test_objects_around_the_patient_do_not_shrink_the_crop(thing: str) -> None:
    hu = _patient()
    body = hu > -400
    j = int(np.flatnonzero(body.any(axis=(0, 2)))[0])
    if thing == "couch":
        hu[:, j - 4 : j - 2] = -250
    elif thing == "touching couch":
        hu[:, : j + 1] = np.where(body[:, : j + 1], hu[:, : j + 1], -250)
    elif thing == "cushion":
        hu[:, j - 4 : j + 6] = np.where(body[:, j - 4 : j + 6], hu[:, j - 4 : j + 6], -930)
    elif thing == "metal":
        hu[28:32, 22:26, 18:22], hu[2, :, :] = 30_000, 3071
    elif thing == "holder":
        shell = ndimage.binary_dilation(body, iterations=3) & ~ndimage.binary_dilation(body, iterations=2)
        hu[shell] = -100
    elif thing == "cut":
        hu, body = hu[15:, :40, 10:30], body[15:, :40, 10:30]
    elif thing == "noise":
        hu = (hu + np.random.default_rng(0).normal(0, 120, hu.shape)).astype(np.int16)
    else:
        outside = ndimage.distance_transform_edt(~body) > 6
        hu[outside] = -2048
    assert _kept(hu, body) == 1.0


def test_cropped_second_leg_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    leg = _patient((30, 30, 40))
    hu = np.concatenate([leg, np.full((10, 30, 40), -1000, np.int16), leg])
    hu[60:66] = -1000  # the second is the smaller
    scan = Volume(hu, np.diag([4.0, 4.0, 4.0, 1.0]))
    with caplog.at_level(logging.WARNING):
        prepared = prepare(scan, COARSE, "scan.nii")
    (note,) = prepared.notes
    assert "cropped" in note
    assert "scan.nii" in caplog.text
    second = np.zeros(hu.shape, np.uint8)
    second[45:55] = hu[45:55] > 0
    assert cut_off_share(scan.with_array(second), prepared) > 0.9


def test_tilted_gantry_is_reported_once(caplog: pytest.LogCaptureFixture) -> None:
    affine = np.diag([3.0, 3.0, 3.0, 1.0])
    affine[1, 2] = 0.8
    assert is_sheared(affine)
    with caplog.at_level(logging.WARNING):
        prepared = prepare(Volume(_patient(), affine), COARSE, "scan.nii")
    assert len(prepared.notes) == len(caplog.records) == 1
    assert "orthogonal grid" in prepared.notes[0]
    assert not is_sheared(prepared.hu.affine)
    assert prepare(Volume(_patient(), np.diag([3.0, 3.0, 3.0, 1.0])), COARSE).notes == ()


GRIDS = st.tuples(
    st.tuples(*[st.sampled_from([0.0, 8.0, 45.0, 90.0, 180.0])] * 3),
    st.sampled_from([0.0, 0.0, 0.2]),
    st.tuples(*[st.sampled_from([1.0, -1.0])] * 3),
    st.tuples(*[st.sampled_from([1.5, 3.0])] * 3),
)


def _grid(turn, tilt, signs, spacing_mm) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", turn, degrees=True).as_matrix() @ [[1, 0, 0], [0, 1, tilt], [0, 0, 1]]
    affine[:3, :3] = affine[:3, :3] * np.multiply(signs, spacing_mm)
    affine[:3, 3] = 31, -7, 400
    return affine


@settings(max_examples=25, deadline=None)
@given(GRIDS, st.sampled_from(["linear", "cubic"]), st.booleans(), st.integers(0, 10_000))
def test_random_blob_is_restored_on_any_grid(grid, interpolation, antialias, seed) -> None:
    """A ball of 6 mm radius, two prepared voxels, keeps a Dice of 0.8, and the mask the scan's shape and affine.

    The lowest of 1,500 random draws was 0.821.
    """
    affine = _grid(*grid)
    rng = np.random.default_rng(seed)
    scan = Volume(_patient((40, 36, 32)), affine)
    centre = np.array(scan.shape) * rng.uniform(0.4, 0.6, 3)
    at = np.moveaxis(np.indices(scan.shape), 0, -1) - centre
    mask = scan.with_array((np.linalg.norm(at * scan.spacing_mm, axis=-1) < rng.uniform(6, 10)).astype(np.uint8))
    config = PreprocessingConfig(spacing_mm=(2.5, 2.5, 3.0), interpolation=interpolation, antialias=antialias)
    prepared = prepare(scan, config)
    back = restore_mask(prepare_mask(mask, prepared).astype(np.float32), prepared, 0.5)
    assert back.shape == scan.shape
    assert back.affine.tobytes() == scan.affine.tobytes()
    dice = 2 * (back.array & mask.array).sum() / (back.array.sum() + mask.array.sum())
    assert dice >= 0.8


@settings(max_examples=40, deadline=None)
@given(GRIDS, st.integers(0, 10_000), st.booleans(), st.sampled_from([(4.0, 2.0, 5.0), (15.0, 18.0, 12.0)]))
def test_preparing_the_drawn_region_equals_preparing_the_full_mask(grid, seed, antialias, spacing_mm) -> None:
    """Restricting the work to the drawn region changes no voxel: at borders, for single, scattered and no voxels."""
    scan = Volume(_patient((24, 22, 20)), _grid(*grid))
    prepared = prepare(scan, PreprocessingConfig(spacing_mm=spacing_mm, antialias=antialias, body_margin_mm=100))
    rng = np.random.default_rng(seed)
    voxels = np.zeros(scan.shape, np.uint8)
    for _ in range(seed % 4):
        corner = [int(rng.choice([0, rng.integers(n), n - 1])) for n in scan.shape]
        voxels[tuple(slice(max(0, c - rng.integers(1, 12)), c + 1 + seed % 3) for c in corner)] = 1
    mask = scan.with_array(voxels)
    hu = prepared.hu
    soft = mask.with_array(voxels.astype(np.float32)).reoriented("RAS")
    whole = resample_to_grid(soft, hu.affine, hu.shape, order=1, fill=0.0, antialias=antialias)
    found = prepare_mask(mask, prepared)
    np.testing.assert_array_equal(found, whole.array >= 0.5)
    np.testing.assert_array_equal(found, prepare_mask(scan.with_array(voxels.astype(bool)), prepared))


def test_drawn_region_includes_averages_at_the_border() -> None:
    """An average truncated by the border may consist mostly of a mask two voxels away."""
    hu = np.full((40, 20, 20), 40, np.int16)
    hu[:, 0] = -1000
    scan = Volume(hu, np.diag([1.0, 1.0, 1.0, 1.0]))
    prepared = prepare(scan, PreprocessingConfig(spacing_mm=(13.0, 2.0, 2.0), body_margin_mm=100))
    mask = scan.with_array(np.zeros(hu.shape, np.uint8) + (np.arange(40) < 37)[:, None, None].astype(np.uint8))
    soft = mask.with_array(mask.array.astype(np.float32))
    whole = resample_to_grid(soft, prepared.hu.affine, prepared.hu.shape, order=1, fill=0.0, antialias=True)
    np.testing.assert_array_equal(prepare_mask(mask, prepared), whole.array >= 0.5)
    assert prepare_mask(mask, prepared)[-1].any()


def test_cubic_prepared_values_equal_scipys_spline() -> None:
    rng = np.random.default_rng(3)
    smooth = ndimage.gaussian_filter(rng.normal(0, 300, (40, 36, 32)), 1)
    scan = Volume((_patient((40, 36, 32)) + smooth).astype(np.int16), np.diag([2.0, 2.0, 3.0, 1.0]))
    config = PreprocessingConfig(spacing_mm=(1.3, 1.7, 2.1), interpolation="cubic", antialias=False)
    prepared = prepare(scan, config)
    ijk = np.indices(prepared.hu.shape).reshape(3, -1)
    to_scan = np.linalg.solve(scan.affine, prepared.hu.affine)
    at = (to_scan[:3, :3] @ ijk + to_scan[:3, 3:]).reshape(3, *prepared.hu.shape)
    crop = prepared.crop
    assert crop is not None
    body = scan.array[crop.slices].astype(np.float64)
    inside = at - np.reshape(crop.start_ijk, (3, 1, 1, 1))
    inside = np.clip(inside, 0, np.reshape(crop.shape, (3, 1, 1, 1)) - 1)
    expected = np.clip(np.rint(ndimage.map_coordinates(body, inside, order=3, mode="mirror")), AIR_HU, 3071)
    assert np.abs(prepared.hu.array - expected).max() <= 1
    assert np.mean(prepared.hu.array != expected) < 1e-3


@pytest.mark.parametrize(
    ("antialias", "digest"),
    [(True, "09d379f043cca650"), (False, "cb09b5bce6d9c866")],
)
def test_voxels_of_preprocessing_version_1_are_unchanged(antialias: bool, digest: str) -> None:
    rng = np.random.default_rng(11)
    hu = (_patient((50, 44, 30)) + rng.integers(-60, 60, (50, 44, 30))).astype(np.int16)
    affine = np.array([[-2.0, 0.2, 0, 11], [0.2, 2.0, 0, -5], [0, 0, 3.3, 70], [0, 0, 0, 1]])
    prepared = prepare(Volume(hu, affine), PreprocessingConfig(antialias=antialias))
    assert hashlib.sha256(np.ascontiguousarray(prepared.hu.array).tobytes()).hexdigest()[:16] == digest
