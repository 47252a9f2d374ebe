"""Chains of grid changes and their inverses: each voxel keeps its position in the patient."""

from __future__ import annotations

from collections.abc import Callable
from itertools import permutations, product

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation

from gtvray.errors import GeometryError
from gtvray.geometry import Box, Volume, is_sheared, orthogonal_grid, resample_to_grid, resampled_grid

CODES = ["".join(pair[s] for pair, s in zip(order, signs, strict=True))
         for order in permutations(["LR", "PA", "IS"]) for signs in product((0, 1), repeat=3)]  # fmt: skip
Step = Callable[[Volume], Volume]


@st.composite
def volumes(draw: st.DrawFn, least: int = 1, most: int = 6) -> Volume:
    """Voxels numbered from 1; any rotation, handedness, shear, spacing and origin."""
    shape = draw(st.tuples(*[st.integers(least, most)] * 3))
    turn = Rotation.from_euler("xyz", draw(st.tuples(*[st.floats(-180, 180)] * 3)), degrees=True).as_matrix()
    shear = np.eye(3) + np.triu(np.full((3, 3), draw(st.sampled_from([0, 0, 0.36, -0.1]))), 1)
    signs = draw(st.tuples(*[st.sampled_from([1, -1])] * 3))
    affine = np.eye(4)
    affine[:3, :3] = turn @ shear @ np.diag(np.multiply(draw(st.tuples(*[st.floats(0.1, 9)] * 3)), signs))
    affine[:3, 3] = draw(st.tuples(*[st.floats(-900, 900)] * 3))
    return Volume(1 + np.arange(np.prod(shape), dtype=np.int16).reshape(shape), affine)


def _reorient(codes: str) -> Step:
    return lambda volume: volume.reoriented(codes)


def _crop(shares: tuple[float, ...]) -> Step:
    """Crop to the box between two shares of each axis."""

    def step(volume: Volume) -> Volume:
        pairs = [sorted(int(share * n) for share in shares[a : a + 2]) for a, n in enumerate(volume.shape)]
        start, stop = [low for low, _ in pairs], [high + 1 for _, high in pairs]
        return volume.cropped(Box((start[0], start[1], start[2]), (stop[0], stop[1], stop[2])))

    return step


def _pad(before: tuple[int, int, int], after: tuple[int, int, int]) -> Step:
    def step(volume: Volume) -> Volume:
        start, stop = np.negative(before).tolist(), np.add(volume.shape, after).tolist()
        return volume.padded(Box(tuple(start), tuple(stop)), 0)

    return step


MARGINS = st.tuples(*[st.integers(0, 3)] * 3)
STEPS = st.one_of(
    st.builds(_reorient, st.sampled_from(CODES)),
    st.builds(_crop, st.tuples(*[st.floats(0, 0.999)] * 4)),
    st.builds(_pad, MARGINS, MARGINS),
)


def _positions_mm(volume: Volume) -> dict[int, np.ndarray]:
    """Position in mm of the voxel of each number from 1; no number occurs twice."""
    found = np.argwhere(volume.array)
    places = found @ volume.affine[:3, :3].T + volume.affine[:3, 3]
    numbers = volume.array[tuple(found.T)].tolist()
    assert len(set(numbers)) == len(numbers)
    return dict(zip(numbers, places, strict=True))


@settings(max_examples=150, deadline=None)
@given(volumes(), st.lists(STEPS, max_size=6))
def test_chain_of_grid_changes_preserves_positions_and_is_inverted(volume: Volume, steps: list[Step]) -> None:
    there = volume
    for step in steps:
        there = step(there)
    before, after = _positions_mm(volume), _positions_mm(there)
    assert set(after) <= set(before)
    for number, place in after.items():
        np.testing.assert_allclose(place, before[number], atol=1e-6)
    back = there.placed_on(volume, 0)
    np.testing.assert_array_equal(back.affine, volume.affine)
    # Voxels that were cropped are 0, the others keep their positions.
    kept = np.isin(volume.array, list(after))
    np.testing.assert_array_equal(back.array, np.where(kept, volume.array, 0))


@settings(max_examples=100, deadline=None)
@given(volumes(), st.sampled_from(CODES), MARGINS, MARGINS, st.sampled_from([1, 3]))
def test_integer_resampling_is_inverted_exactly(volume, codes, before, after, finer) -> None:
    there = _pad(before, after)(volume.reoriented(codes))
    spacing_mm = tuple(value / finer for value in there.spacing_mm)
    if min(spacing_mm) < 0.05:
        return
    fine = resample_to_grid(there, *resampled_grid(there, spacing_mm), order=0, fill=0)
    back = resample_to_grid(fine, there.affine, there.shape, order=0, fill=0).placed_on(volume, -1)
    np.testing.assert_array_equal(back.array, volume.array)


@settings(max_examples=100, deadline=None)
@given(
    volumes(least=2),
    st.tuples(*[st.floats(0.4, 2.5)] * 3),
    st.tuples(*[st.floats(-180, 180)] * 3),
    st.integers(0, 2**32 - 1),
)
@example(Volume(np.ones((5, 5, 5), np.int16), np.diag([-1.0, -1, 3, 1])), (1.0, 1.0, 1.0), (0.0, 0.0, 30.0), 0)
def test_resampling_a_mask_and_back_moves_voxels_by_at_most_half_diagonals(
    volume: Volume, factors: tuple[float, ...], angles: tuple[float, ...], seed: int
) -> None:
    """A voxel moves by at most half a voxel diagonal of one grid plus half a diagonal of the other."""
    random = np.random.default_rng(seed).random(volume.shape) < 0.4
    mask = _pad((3, 3, 3), (3, 3, 3))(volume.with_array(random.astype(np.uint8)))
    # A rotated grid that covers the mask.
    affine = np.eye(4)
    turn = Rotation.from_euler("xyz", angles, degrees=True).as_matrix()
    spacing_mm = np.clip(np.multiply(volume.spacing_mm, factors), 0.05, 20)
    affine[:3, :3] = turn * spacing_mm
    corners = np.array(list(product(*[(-1, n) for n in mask.shape]))) @ mask.affine[:3, :3].T + mask.affine[:3, 3]
    along = np.linalg.solve(affine[:3, :3], corners.T)
    affine[:3, 3] = affine[:3, :3] @ along.min(axis=1)
    size = np.ceil(np.ptp(along, axis=1)).astype(int) + 2
    if size.prod() > 100_000:
        return
    there = resample_to_grid(mask, affine, tuple(size.tolist()), order=0, fill=0)
    back = resample_to_grid(there, mask.affine, mask.shape, order=0, fill=0)
    reach_mm = _half_diagonal_mm(mask.affine) + _half_diagonal_mm(affine) + 1e-6
    for value in (0, 1):
        old, new = (np.argwhere(one.array == value) @ mask.affine[:3, :3].T for one in (mask, back))
        assert len(new) == 0 or cKDTree(old).query(new)[0].max() <= reach_mm


def _half_diagonal_mm(affine: np.ndarray) -> float:
    """Half the longest diagonal of a voxel, sheared or not."""
    return 0.5 * max(float(np.linalg.norm(affine[:3, :3] @ signs)) for signs in product((1, -1), repeat=3))


@settings(max_examples=60, deadline=None)
@given(volumes(least=2))
def test_orthogonal_grid_preserves_the_volume_of_a_sheared_mask(volume: Volume) -> None:
    mask = _pad((2, 2, 2), (2, 2, 2))(volume.with_array(np.ones(volume.shape, np.float32)))
    affine, shape = orthogonal_grid(mask.affine, mask.shape)
    assert not is_sheared(affine)
    upright = resample_to_grid(mask, affine, shape, order=1, fill=0)
    corners = np.array(list(product(*[(0, n - 1) for n in mask.shape])))
    at = np.linalg.solve(affine, np.column_stack([corners @ mask.affine[:3, :3].T + mask.affine[:3, 3], np.ones(8)]).T)
    inside = at[:3].T
    assert inside.min() > -1e-6
    assert (inside - np.subtract(shape, 1)).max() < 1e-6
    # The sum over linearly interpolated voxels is the volume, up to sampling errors at the surface.
    if min(volume.shape) >= 4:
        ratio = upright.array.sum() * upright.voxel_volume_ml / (mask.array.sum() * mask.voxel_volume_ml)
        assert ratio == pytest.approx(1, abs=0.25)


def test_cropping_inverts_padding() -> None:
    """Compare with values worked out by hand."""
    volume = Volume(np.arange(6, dtype=np.int16).reshape(1, 2, 3), np.diag([-2.0, 3, 5, 1]))
    padded = volume.padded(Box((-1, 0, -2), (1, 3, 3)), -1024)
    assert padded.shape == (2, 3, 5)
    np.testing.assert_array_equal(padded.affine[:3, 3], (2, 0, -10))
    np.testing.assert_array_equal(padded.array[1, :2, 2:], volume.array[0])
    assert (padded.array == -1024).sum() == 24
    back = padded.cropped(Box((1, 0, 2), (2, 2, 5)))
    np.testing.assert_array_equal(back.array, volume.array)
    np.testing.assert_array_equal(back.affine, volume.affine)


def test_mask_of_a_part_is_placed_on_the_full_scan() -> None:
    """Part of the mask extends beyond the scan, as if saved with a margin."""
    scan = Volume(np.zeros((4, 4, 4), np.int16), np.diag([1.0, 2, 3, 1]))
    affine = np.diag([-1.0, 2, 3, 1])
    affine[:3, 3] = 1.0004, 4, 9.02
    mask = Volume(np.arange(1, 13, dtype=np.uint8).reshape(3, 2, 2), affine)
    placed = mask.placed_on(scan, 0)
    expected = np.zeros((4, 4, 4), np.uint8)
    # Axis i is reversed and starts at voxel 1 of the scan: voxel 2 is at -1, and the second slice at 4.
    expected[1, 2:, 3], expected[0, 2:, 3] = (1, 3), (5, 7)
    np.testing.assert_array_equal(placed.array, expected)
    assert placed.same_grid(scan)
    affine[:3, 3] = 900, 4, 9
    assert not Volume(mask.array, affine).placed_on(scan, 0).array.any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ((0, 3, 0.5), "up to 0.5 voxels"),
        ((1, 3, 0.03), "up to 0.015 voxels"),
        ((2, 2, 3.05), "spacing 1 x 2 x 3.05"),
        ((0, 2, 0.2), "rotated"),
    ],
)
def test_placing_a_volume_off_the_grid_is_rejected(change: tuple[int, int, float], message: str) -> None:
    scan = Volume(np.zeros((4, 4, 4), np.uint8), np.diag([1.0, 2, 3, 1]))
    affine = scan.affine.copy()
    affine[change[:2]] = change[2]
    with pytest.raises(GeometryError, match=r"grids?") as caught:
        Volume(scan.array, affine).placed_on(scan, 0)
    assert message in str(caught.value)


def test_grid_rotated_by_45_degrees_is_not_parallel() -> None:
    """Rounded direction cosines would assign a direction to none of its axes, or to two."""
    upright = Volume(np.zeros((3, 3, 3)), np.eye(4))
    turned = np.eye(4)
    for degrees in (45, 30, 0.1):
        turned[:3, :3] = Rotation.from_euler("z", degrees, degrees=True).as_matrix()
        with pytest.raises(GeometryError, match="parallel"):
            Volume(upright.array, turned).aligned_to(upright)


def test_box_outside_the_grid_is_rejected() -> None:
    volume = Volume(np.zeros((4, 4, 4), np.uint8), np.eye(4))
    for box in (Box((-1, 0, 0), (2, 2, 2)), Box((0, 0, 0), (4, 5, 4)), Box((9, 9, 9), (10, 10, 10))):
        with pytest.raises(GeometryError, match="beyond"):
            volume.cropped(box)
    for box in (Box((1, 0, 0), (4, 4, 4)), Box((-1, -1, -1), (3, 9, 9))):
        with pytest.raises(GeometryError, match="does not contain"):
            volume.padded(box, 0)


@pytest.mark.parametrize("fill", [-1024, 256, 0.5])
def test_fill_value_outside_the_dtype_is_rejected(fill: float) -> None:
    volume = Volume(np.zeros((2, 2, 2), np.uint8), np.eye(4))
    for attempt in (lambda: volume.padded(Box((-1, 0, 0), (2, 2, 2)), fill), lambda: volume.placed_on(volume, fill)):
        with pytest.raises(GeometryError, match="fill"):
            attempt()


@given(*[st.tuples(*[st.tuples(st.integers(-5, 5), st.integers(1, 6))] * 3)] * 2)
def test_box_overlap_and_shift_equal_those_of_their_voxels(one, other) -> None:
    first, second = (Box(tuple(s for s, _ in ranges), tuple(s + n for s, n in ranges)) for ranges in (one, other))
    voxels = [set(product(*[range(*pair) for pair in zip(box.start_ijk, box.stop_ijk, strict=True)]))
              for box in (first, second)]  # fmt: skip
    common = first.overlap(second)
    assert common == second.overlap(first)
    assert (common is None) == (not voxels[0] & voxels[1])
    if common is not None:
        assert np.prod(common.shape) == len(voxels[0] & voxels[1])
        assert first.holds(common)
        assert common.holds(first) == (common == first)
    assert first.holds(second) == (voxels[1] <= voxels[0])
    assert first.moved(first.start_ijk) == Box.whole(first.shape)
