"""Resampling, compared with scipy's map_coordinates."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from scipy.spatial.transform import Rotation

from gtvray.geometry import Box, Volume, resample, resample_to_grid, resampled_grid

FILL = -1024.0


def _volume(seed: int, shape: tuple[int, int, int] = (7, 6, 5)) -> Volume:
    rng = np.random.default_rng(seed)
    affine = np.diag([*rng.uniform(0.6, 4, 3) * rng.choice([1, -1], 3), 1.0])
    affine[:3, 3] = rng.uniform(-200, 200, 3)
    return Volume(rng.integers(-1000, 3000, shape).astype(np.int16), affine)


def _positions(volume: Volume, affine: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    ijk = np.indices(shape).reshape(3, -1)
    world = affine[:3, :3] @ ijk + affine[:3, 3:]
    return np.linalg.solve(volume.affine[:3, :3], world - volume.affine[:3, 3:]).reshape(3, *shape)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.tuples(*[st.floats(0.3, 3)] * 3), st.tuples(*[st.floats(-4, 4)] * 3), st.booleans())
def test_parallel_grids_agree_with_scipy(seed, factor, shift, flip) -> None:
    volume = _volume(seed)
    affine = volume.affine @ np.diag([*factor, 1.0])
    affine[:3, 3] += shift
    affine[:3, 1] *= -1 if flip else 1
    positions, limit = _positions(volume, affine, (9, 8, 7)), np.array(volume.shape)[:, None, None, None]
    # Within rounding of the border a position may take the edge value or the fill.
    edge = np.minimum(np.abs(positions + 0.5), np.abs(positions - limit + 0.5)).min(axis=0) < 1e-5
    expected = ndimage.map_coordinates(volume.array.astype(np.float64), positions, order=1, mode="nearest")
    expected[((positions < -0.5) | (positions > limit - 0.5)).any(axis=0)] = FILL
    found = resample_to_grid(volume, affine, (9, 8, 7), order=1, fill=FILL)
    assert found.array.dtype == np.float32
    np.testing.assert_allclose(found.array[~edge], expected[~edge], atol=0.05)
    np.testing.assert_array_equal(found.affine, affine)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 10_000),
    st.tuples(*[st.floats(0.3, 3)] * 3),
    st.tuples(*[st.floats(-4, 4)] * 3),
    st.booleans(),
    st.sampled_from([(7, 6, 5), (1, 2, 3), (40, 5, 33), (3, 50, 2)]),
)
def test_cubic_equals_scipys_interpolating_spline(seed, factor, shift, flip, shape) -> None:
    volume = _volume(seed, shape)
    affine = volume.affine @ np.diag([*factor, 1.0])
    affine[:3, 3] += shift
    affine[:3, 1] *= -1 if flip else 1
    positions, limit = _positions(volume, affine, (9, 8, 37)), np.array(volume.shape)[:, None, None, None]
    edge = np.minimum(np.abs(positions + 0.5), np.abs(positions - limit + 0.5)).min(axis=0) < 1e-5
    inside = np.clip(positions, 0, limit - 1)
    expected = ndimage.map_coordinates(volume.array.astype(np.float64), inside, order=3, mode="mirror")
    expected[((positions < -0.5) | (positions > limit - 0.5)).any(axis=0)] = FILL
    found = resample_to_grid(volume, affine, (9, 8, 37), order=3, fill=FILL)
    assert found.array.dtype == np.float32
    np.testing.assert_allclose(found.array[~edge], expected[~edge], atol=0.02)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 10_000),
    st.sampled_from([0, 1, 3]),
    st.booleans(),
    st.tuples(*[st.floats(0.3, 3)] * 3),
    st.sampled_from(["RAS", "LPS", "SAR", "IPL"]),
    st.tuples(*[st.tuples(st.integers(0, 11), st.integers(1, 12))] * 3),
)
def test_values_do_not_depend_on_slabs_boxes_or_memory_order(seed, order, antialias, factor, codes, spans) -> None:
    """A part of the grid has the values of the full grid, for any slabs and memory order of the source."""
    volume = _volume(seed, (13, 6, 31)).reoriented(codes)
    affine = volume.affine @ np.diag([*factor, 1.0])
    options = {"order": order, "fill": FILL, "antialias": antialias}
    whole = resample_to_grid(volume, affine, (12, 12, 12), **options)
    box = Box(tuple(start for start, _ in spans), tuple(min(12, start + size) for start, size in spans))
    other = Volume(np.asfortranarray(volume.array), volume.affine)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resample, "_SLAB_VOXELS", 60)
        for source in (volume, other):
            part = resample_to_grid(source, affine, (12, 12, 12), within=box, **options)
            if order < 3:
                np.testing.assert_array_equal(part.array, whole.array[box.slices])
            else:
                # Matrix products of other shapes may round differently.
                np.testing.assert_allclose(part.array, whole.array[box.slices], atol=0.01)
            assert part.array.dtype == whole.array.dtype
            np.testing.assert_allclose(part.affine, whole.cropped(box).affine, atol=1e-9)


def test_resampling_does_not_modify_the_source() -> None:
    volume = _volume(4)
    before = volume.array.copy()
    affine = volume.affine.copy()
    affine[:3, 3] += 3 * volume.affine[:3, 0]
    found = resample_to_grid(volume, affine, volume.shape, order=0, fill=5).array
    np.testing.assert_array_equal(found[:-3], before[3:])
    assert (found[-3:] == 5).all()
    np.testing.assert_array_equal(volume.array, before)
    # A dtype that cannot represent the fill does not wrap it.
    small, affine = Volume((before > 0).astype(np.uint8), np.eye(4)), np.eye(4)
    affine[0, 3] = 3
    for order in (1, 3):
        assert resample_to_grid(small, affine, small.shape, order=order, fill=FILL).array.min() == FILL


@pytest.mark.parametrize("order", [1, 3])
def test_int16_is_rounded_and_clipped(order: int) -> None:
    volume = _volume(6, (30, 20, 10))
    affine, shape = resampled_grid(volume, (0.7, 1.1, 2.3))
    values = resample_to_grid(volume, affine, shape, order=order, fill=FILL).array
    found = resample_to_grid(volume, affine, shape, order=order, fill=FILL, int16_range=(-900, 2000)).array
    assert found.dtype == np.int16
    np.testing.assert_array_equal(found, np.clip(np.rint(values), -900, 2000))
    assert (found.min(), found.max()) == (-900, 2000)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.tuples(*[st.floats(-180, 180)] * 3), st.sampled_from([0.0, 0.3]))
def test_rotated_grids_agree_with_scipy_inside(seed, angles, tilt) -> None:
    volume = _volume(seed)
    affine = np.eye(4)
    turn = Rotation.from_euler("xyz", angles, degrees=True).as_matrix()
    affine[:3, :3] = turn @ [[1, tilt, 0], [0, 1, 0], [0, 0, 1]] @ np.diag(volume.spacing_mm)
    affine[:3, 3] = volume.center_mm() - affine[:3, :3] @ [4, 4, 4]
    positions = _positions(volume, affine, (9, 9, 9))
    limit = np.array(volume.shape)[:, None, None, None] - 1
    inside = ((positions >= 0) & (positions <= limit)).all(axis=0)
    outside = ((positions < -1) | (positions > limit + 1)).any(axis=0)
    found = resample_to_grid(volume, affine, (9, 9, 9), order=1, fill=FILL).array
    expected = ndimage.map_coordinates(volume.array.astype(np.float64), positions, order=1, mode="nearest")
    assert inside.any()
    np.testing.assert_allclose(found[inside], expected[inside], atol=0.05)
    assert (found[outside] == FILL).all()


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.3, 3), st.sampled_from([0.0, 25.0]))
def test_order_0_takes_the_nearest_voxel_and_keeps_the_dtype(seed: int, factor: float, angle: float) -> None:
    volume = _volume(seed)
    affine = volume.affine @ np.diag([factor, 1, 1 / factor, 1.0])
    affine[:3, :3] = Rotation.from_euler("z", angle, degrees=True).as_matrix() @ affine[:3, :3]
    positions = _positions(volume, affine, (6, 6, 6))
    limit = np.array(volume.shape)[:, None, None, None] - 1
    tie = np.abs(positions - np.floor(positions) - 0.5).min(axis=0) < 1e-5
    sure = ((positions >= 0) & (positions <= limit)).all(axis=0) & ~tie
    found = resample_to_grid(volume, affine, (6, 6, 6), order=0, fill=0)
    assert found.array.dtype == volume.array.dtype
    i, j, k = np.rint(positions[:, sure]).astype(int)
    np.testing.assert_array_equal(found.array[sure], volume.array[i, j, k])


def test_order_0_rounds_ties_to_the_same_side() -> None:
    volume, affine = Volume(np.arange(6, dtype=np.uint8).reshape(6, 1, 1), np.eye(4)), np.eye(4)
    affine[0, 3] = 0.5
    assert resample_to_grid(volume, affine, (5, 1, 1), order=0, fill=0).array.ravel().tolist() == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("order", [0, 1])
def test_resampling_to_the_same_grid_is_the_identity(order: int) -> None:
    volume = _volume(3)
    np.testing.assert_array_equal(
        resample_to_grid(volume, volume.affine, volume.shape, order=order, fill=0).array, volume.array
    )


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.tuples(*[st.floats(0.5, 6)] * 3))
def test_resampled_grid_covers_the_extent_and_keeps_the_centre(
    seed: int, spacing_mm: tuple[float, float, float]
) -> None:
    volume = _volume(seed)
    affine, shape = resampled_grid(volume, spacing_mm)
    grid = Volume(np.zeros(shape, np.uint8), affine)
    assert grid.spacing_mm == pytest.approx(spacing_mm)
    assert grid.orientation == volume.orientation
    np.testing.assert_allclose(grid.center_mm(), volume.center_mm(), atol=1e-9)
    extent, covered = np.multiply(volume.shape, volume.spacing_mm), np.multiply(shape, spacing_mm)
    assert (covered >= extent - 0.0011 * np.array(spacing_mm)).all()
    assert (covered < extent + spacing_mm).all()


def test_linear_resampling_reproduces_a_linear_field() -> None:
    """Values that are linear in world coordinates are reproduced on any grid inside."""
    volume = _volume(5, (12, 11, 10))
    ijk = np.indices(volume.shape).reshape(3, -1)
    world = (volume.affine[:3, :3] @ ijk + volume.affine[:3, 3:]).reshape(3, *volume.shape)
    field = volume.with_array((world[0] - 2 * world[1] + world[2]).astype(np.float32))
    for angle in (0.0, 20.0):
        affine = np.eye(4)
        affine[:3, :3] = Rotation.from_euler("y", angle, degrees=True).as_matrix() * 0.4
        affine[:3, 3] = volume.center_mm() - affine[:3, :3] @ [2, 2, 2]
        there = _positions(Volume(np.zeros((1, 1, 1)), np.eye(4)), affine, (5, 5, 5))
        found = resample_to_grid(field, affine, (5, 5, 5), order=1, fill=0).array
        np.testing.assert_allclose(found, there[0] - 2 * there[1] + there[2], atol=2e-3)
