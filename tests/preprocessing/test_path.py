"""Preprocessing of scans, and restoring masks to the grid of the scan."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from scipy.spatial.transform import Rotation

from gtvray.config import PreprocessingConfig
from gtvray.errors import DataError
from gtvray.geometry import Volume, is_sheared
from gtvray.io import read_volume
from gtvray.preprocessing import AIR_HU, check_hu, prepare, prepare_mask, restore_mask, to_channels

CONFIG = PreprocessingConfig()


def _affine(
    turn_degrees: tuple[float, float, float], tilt: float, spacing_mm: tuple[float, float, float]
) -> np.ndarray:
    affine = np.eye(4)
    turn = Rotation.from_euler("xyz", turn_degrees, degrees=True).as_matrix()
    affine[:3, :3] = turn @ [[1, 0, 0], [0, 1, tilt], [0, 0, 1]] @ np.diag(spacing_mm)
    affine[:3, 3] = 40, -30, 700
    return affine


def _head(affine: np.ndarray, shape: tuple[int, int, int] = (40, 44, 24)) -> tuple[Volume, Volume]:
    """An asymmetric ball of tissue with a strip of bone, and an asymmetric tumour in it."""
    i, j, k = (np.arange(n) - (n - 1) / 2 for n in shape)
    rho = (i[:, None, None] / 15) ** 2 + (j[:, None] / 18) ** 2 + (k / 10) ** 2 + 0.02 * i[:, None, None]
    hu = np.where(rho < 1, 40, -1000).astype(np.int16)
    hu[(rho < 0.8) & (np.abs(j[:, None]) < 2)] = 900
    tumour = ((i[:, None, None] - 4) / 6) ** 2 + ((j[:, None] + 3) / 7) ** 2 + ((k - 1) / 5) ** 2 < 1
    return Volume(hu, affine), Volume(tumour.astype(np.uint8), affine)


def _dice(one: np.ndarray, other: np.ndarray) -> float:
    return float(2 * (one & other).sum() / (one.sum() + other.sum()))


def _dice_after_restoring(scan: Volume, mask: Volume, config: PreprocessingConfig = CONFIG) -> float:
    prepared = prepare(scan, config)
    assert prepared.hu.array.dtype == np.int16
    assert prepared.hu.spacing_mm == pytest.approx(config.spacing_mm)
    back = restore_mask(prepare_mask(mask, prepared).astype(np.float32), prepared, 0.5)
    assert back.shape == scan.shape
    assert back.affine.tobytes() == scan.affine.tobytes()
    assert back.array.dtype == np.uint8
    return _dice(back.array, mask.array)


@pytest.mark.parametrize("case", ["pt_1", "pt_100", "pt_105"])
@pytest.mark.parametrize(
    ("turn", "tilt"), [((0, 0, 0), 0), ((12, 0, 0), 0), ((9, -7, 20), 0), ((0, 0, 0), 0.25), ((5, 100, 0), -0.2)]
)
def test_real_mask_is_restored(real_cases: Path, case: str, turn: tuple[float, float, float], tilt: float) -> None:
    scan, mask = (read_volume(real_cases / case / f"{name}.nii.gz") for name in ("data", "label"))
    moved = np.eye(4)
    moved[:3, :3] = Rotation.from_euler("xyz", turn, degrees=True).as_matrix() @ [[1, 0, 0], [0, 1, tilt], [0, 0, 1]]
    scan, mask = (Volume(volume.array, moved @ volume.affine) for volume in (scan, mask))
    assert is_sheared(scan.affine) == (tilt != 0)
    assert _dice_after_restoring(scan, mask) >= 0.95


@settings(max_examples=25, deadline=None)
@given(
    st.tuples(*[st.sampled_from([0.0, 12.0, 45.0, 77.7, 90.0, 135.0, 180.0])] * 3),
    st.sampled_from([0.0, 0.0, 0.25]),
    st.tuples(*[st.sampled_from([2.0, 3.0, 4.0])] * 3),
    st.tuples(*[st.sampled_from([1, -1])] * 3),
)
def test_mask_is_restored_on_any_grid(turn, tilt, spacing_mm, signs) -> None:
    affine = _affine(turn, tilt, tuple(np.multiply(spacing_mm, signs)))
    assert _dice_after_restoring(*_head(affine), PreprocessingConfig(spacing_mm=(2.0, 2.0, 2.0))) >= 0.95


def test_scan_on_the_prepared_grid_is_not_resampled() -> None:
    scan, mask = _head(np.diag([3.0, 3, 3, 1]))
    prepared = prepare(scan, PreprocessingConfig(body_margin_mm=100))
    np.testing.assert_array_equal(prepared.hu.array, scan.array)
    np.testing.assert_array_equal(prepare_mask(mask, prepared), mask.array)
    assert _dice_after_restoring(scan, mask) == 1.0


def test_reoriented_real_scan_gives_the_same_voxels(shared_data: Path) -> None:
    folder = shared_data / "oddities" / "derived"
    one, other = (prepare(read_volume(folder / f"{name}.nii.gz"), CONFIG) for name in ("base", "reoriented_ras"))
    assert one.hu.same_grid(other.hu)
    assert one.hu.orientation == "RAS"
    np.testing.assert_array_equal(one.hu.array, other.hu.array)


@pytest.mark.parametrize("codes", ["LPS", "LPI", "SAR", "IPL", "ARS"])
def test_prepared_voxels_do_not_depend_on_orientation(codes: str) -> None:
    scan, mask = _head(_affine((8, -5, 3), 0, (2.5, 3.1, 4.0)))
    one, other = prepare(scan, CONFIG), prepare(scan.reoriented(codes), CONFIG)
    assert one.hu.same_grid(other.hu)
    np.testing.assert_array_equal(one.hu.array, other.hu.array)
    np.testing.assert_array_equal(prepare_mask(mask, one), prepare_mask(mask.reoriented(codes), other))


@pytest.mark.parametrize("name", ["scaled_0_1", "uint8_windowed", "unsigned_offset1024", "all_air"])
def test_scan_not_in_hounsfield_units_is_rejected(shared_data: Path, name: str) -> None:
    path = shared_data / "oddities" / "derived" / f"{name}.nii.gz"
    for attempt in (check_hu, lambda scan, where: prepare(scan, CONFIG, where)):
        with pytest.raises(DataError, match="Hounsfield") as caught:
            attempt(read_volume(path), path)
        assert caught.value.fields["where"] == str(path)


def test_real_scans_in_hounsfield_units_are_accepted(real_cases: Path, shared_data: Path) -> None:
    check_hu(read_volume(real_cases / "pt_1" / "data.nii.gz"))
    check_hu(read_volume(shared_data / "head_ct" / "cranium.nii.gz"))


def test_scan_without_a_body_is_rejected() -> None:
    array = np.full((30, 30, 30), -1000, np.int16)
    array[3, 3, 3] = 500
    with pytest.raises(DataError, match="no body") as caught:
        prepare(Volume(array, np.eye(4)), CONFIG, "scan.nii")
    assert caught.value.fields["where"] == "scan.nii"


@settings(max_examples=40, deadline=None)
@given(st.tuples(*[st.floats(0.5, 4)] * 3), st.tuples(*[st.integers(0, 9)] * 3), st.sampled_from([0.0, 3.0, 40.0]))
def test_crop_contains_the_body_and_its_margin_and_little_else(spacing_mm, start, margin_mm) -> None:
    array = np.full((40, 38, 36), -1000, np.int16)
    stop = np.add(start, [19, 21, 17])
    array[tuple(slice(a, b) for a, b in zip(start, stop, strict=True))] = 30
    array[36:, 34:, 32:] = 30  # a smaller object beside it
    scan = Volume(array, np.diag([*spacing_mm, 1.0]))
    prepared = prepare(scan, PreprocessingConfig(spacing_mm=(2.0, 2.0, 2.0), body_margin_mm=margin_mm)).hu
    low = prepared.affine[:3, 3] - 1
    high = low + np.multiply(prepared.shape, 2)
    body_low, body_high = (np.multiply(np.subtract(edge, 0.5), spacing_mm) for edge in (start, stop))
    grid_high = np.multiply(np.subtract(array.shape, 0.5), spacing_mm)
    voxel = np.array(spacing_mm)
    assert (low <= np.maximum(body_low - margin_mm + 0.5 * voxel, -0.5 * voxel) + 0.01).all()
    assert (high >= np.minimum(body_high + margin_mm - 0.5 * voxel, grid_high) - 0.01).all()
    # Up to a search step, rounding of the margin and one prepared voxel.
    slack = 4 + 1.5 * voxel + 2
    assert (low >= body_low - margin_mm - slack).all()
    assert (high <= body_high + margin_mm + slack).all()


def test_values_outside_the_hu_range_are_clipped() -> None:
    scan, _ = _head(np.diag([3.0, 3, 3, 1]))
    array = scan.array.copy()
    array[array == 900], array[0, 0, 0] = 30_000, -30_000
    prepared = prepare(scan.with_array(array), PreprocessingConfig(body_margin_mm=100))
    assert (prepared.hu.array.min(), prepared.hu.array.max()) == (AIR_HU, 3071)


@pytest.mark.parametrize("threshold", [0.2, 0.5, 0.9])
@pytest.mark.parametrize("tilt", [0.0, 0.25])
def test_restoring_the_tumour_region_equals_restoring_the_full_grid(threshold: float, tilt: float) -> None:
    """Restricting the work to the tumour region changes no voxel; scipy samples the full grid point by point."""
    scan, _ = _head(_affine((8, -5, 3), tilt, (2.5, 3.1, 4.0)))
    prepared = prepare(scan, CONFIG)
    noise = np.random.default_rng(1).random(prepared.hu.shape, dtype=np.float32)
    probability = ndimage.gaussian_filter(noise, 2)
    probability = (probability - probability.min()) / np.ptp(probability)
    probability[:, : probability.shape[1] // 2] *= 0.1
    ijk = np.indices(scan.shape).reshape(3, -1)
    to_prepared = np.linalg.solve(prepared.hu.affine, scan.affine)
    at = (to_prepared[:3, :3] @ ijk + to_prepared[:3, 3:]).reshape(3, *scan.shape)
    expected = ndimage.map_coordinates(probability.astype(np.float64), at, order=1, mode="nearest")
    limit = np.array(probability.shape)[:, None, None, None] - 1
    sure = ((at >= 0) & (at <= limit)).all(axis=0) & (np.abs(expected - threshold) > 1e-4)
    far = ((at < -1) | (at > limit + 1)).any(axis=0)
    found = restore_mask(probability, prepared, threshold).array
    np.testing.assert_array_equal(found[sure], expected[sure] > threshold)
    assert not found[far].any()
    assert found.any()


def test_probability_below_the_threshold_gives_an_empty_mask_on_the_grid() -> None:
    scan, _ = _head(_affine((8, -5, 3), 0.2, (2.5, 3.1, 4.0)))
    prepared = prepare(scan, CONFIG)
    back = restore_mask(np.full(prepared.hu.shape, 0.5, np.float32), prepared, 0.5)
    assert not back.array.any()
    assert back.array.dtype == np.uint8
    assert back.affine.tobytes() == scan.affine.tobytes()


def test_single_slice_is_restored() -> None:
    scan, mask = _head(np.diag([-3.0, -3, 2.5, 1]))
    middle = [volume.array[:, :, 12:13] for volume in (scan, mask)]
    assert _dice_after_restoring(*(Volume(array, scan.affine) for array in middle)) >= 0.95


@given(st.lists(st.tuples(st.integers(-1024, 1000), st.integers(1, 2000)), min_size=1, max_size=3))
def test_each_window_becomes_a_channel(spans: list[tuple[int, int]]) -> None:
    windows = tuple((float(low), float(low + width)) for low, width in spans)
    hu = np.arange(-1024, 3072, 7, dtype=np.int16).reshape(1, 1, -1)
    channels = to_channels(hu, windows)
    assert channels.shape == (len(windows), *hu.shape)
    assert channels.dtype == np.float32
    for channel, (low, high) in zip(channels, windows, strict=True):
        np.testing.assert_allclose(channel, np.clip((hu - low) / (high - low), 0, 1), atol=1e-4)
