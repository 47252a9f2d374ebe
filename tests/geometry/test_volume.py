"""Volumes and boxes: voxels keep their positions in the patient when the grid changes."""

from __future__ import annotations

from itertools import permutations, product
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from gtvray.errors import GeometryError
from gtvray.geometry import Box, Volume, resample_to_grid, resampled_grid

CODES = ["".join(pair[s] for pair, s in zip(order, signs, strict=True))
         for order in permutations(["LR", "PA", "IS"]) for signs in product((0, 1), repeat=3)]  # fmt: skip


@st.composite
def affines(draw: st.DrawFn) -> np.ndarray:
    """Oblique, left- and right-handed, half of them sheared, any spacing and origin."""
    turn = Rotation.from_euler(
        "xyz", [draw(st.sampled_from([0, 12, 45, 90, 133.7, 180])) for _ in range(3)], degrees=True
    )
    shear = np.eye(3) + np.triu(np.array([[0, *draw(st.tuples(*[st.sampled_from([0, 0.21, -0.08])] * 2))]] * 3), 1)
    spacing_mm = [draw(st.floats(0.5, 5)) * draw(st.sampled_from([1, -1])) for _ in range(3)]
    affine = np.eye(4)
    affine[:3, :3] = turn.as_matrix() @ shear @ np.diag(spacing_mm)
    affine[:3, 3] = [draw(st.floats(-500, 500)) for _ in range(3)]
    return affine


@st.composite
def masks(draw: st.DrawFn) -> tuple[Volume, Box]:
    """A mask and a box that contains its voxels."""
    shape = draw(st.tuples(*[st.integers(2, 7)] * 3))
    start = [draw(st.integers(0, n - 1)) for n in shape]
    stop = [draw(st.integers(s + 1, n)) for s, n in zip(start, shape, strict=True)]
    array = np.zeros(shape, np.uint8)
    box = Box(tuple(start), tuple(stop))
    array[box.slices] = np.random.default_rng(draw(st.integers(0, 99))).integers(0, 2, box.shape)
    return Volume(array, draw(affines())), box


def _marked_mm(volume: Volume) -> np.ndarray:
    """World positions of the voxels of value 1, sorted."""
    places = np.argwhere(volume.array == 1) @ volume.affine[:3, :3].T + volume.affine[:3, 3]
    return places[np.lexsort(places.round(3).T)]


@settings(max_examples=150, deadline=None)
@given(masks(), st.sampled_from(CODES))
def test_reorienting_and_cropping_preserve_voxel_positions(case: tuple[Volume, Box], codes: str) -> None:
    mask, box = case
    there = mask.reoriented(codes)
    np.testing.assert_allclose(_marked_mm(there), _marked_mm(mask), atol=1e-3)
    np.testing.assert_allclose(_marked_mm(mask.cropped(box)), _marked_mm(mask), atol=1e-3)
    np.testing.assert_allclose(there.center_mm(), mask.center_mm(), atol=1e-6)
    back = there.aligned_to(mask)
    assert back.same_grid(mask)
    np.testing.assert_array_equal(back.array, mask.array)


@settings(max_examples=150, deadline=None)
@given(masks(), st.sampled_from(CODES), st.sampled_from([1, 3, 5]))
def test_crop_reorient_and_resample_are_inverted_exactly(case: tuple[Volume, Box], codes: str, finer: int) -> None:
    mask, box = case
    part = mask.cropped(box).reoriented(codes)
    spacing_mm = tuple(value / finer for value in part.spacing_mm)
    fine = resample_to_grid(part, *resampled_grid(part, spacing_mm), order=0, fill=0)
    assert fine.shape == tuple(n * finer for n in part.shape)
    np.testing.assert_allclose(fine.center_mm(), part.center_mm(), atol=1e-6)
    back = resample_to_grid(fine, mask.affine, mask.shape, order=0, fill=0)
    np.testing.assert_array_equal(back.array, mask.array)
    assert back.array.dtype == np.uint8


@pytest.mark.parametrize("codes", CODES)
def test_reoriented_volume_has_the_requested_orientation(codes: str) -> None:
    volume = Volume(np.arange(24).reshape(2, 3, 4), np.diag([-1.0, 2, 3, 1]))
    assert volume.reoriented(codes).orientation == codes


def test_volume_is_read_only() -> None:
    array, affine = np.zeros((2, 3, 4)), np.eye(4)
    volume = Volume(array, affine)
    for target in (volume.array, volume.affine):
        with pytest.raises(ValueError, match="read-only"):
            target[0, 0] = 1
    affine[0, 3] = 9
    assert volume.affine[0, 3] == 0
    assert array.flags.writeable


@pytest.mark.parametrize("array", [np.zeros((2, 2)), np.zeros((2, 2, 2, 1)), np.zeros((2, 0, 2))])
def test_array_that_is_not_three_dimensional_is_rejected(array: np.ndarray) -> None:
    with pytest.raises(GeometryError):
        Volume(array, np.eye(4))


def test_with_array_requires_the_shape_of_the_grid() -> None:
    volume = Volume(np.zeros((2, 3, 4)), np.diag([1, 2, 5, 1.0]))
    assert volume.with_array(np.ones((2, 3, 4), np.uint8)).same_grid(volume)
    assert volume.voxel_volume_ml == pytest.approx(0.01)
    with pytest.raises(GeometryError):
        volume.with_array(np.zeros((4, 3, 2)))


def test_same_grid_compares_voxel_positions() -> None:
    volume = Volume(np.zeros((11, 5, 5)), np.diag([1, 1, 2, 1.0]))

    def shifted(change: Any) -> Volume:
        affine = volume.affine.copy()
        affine[change[0]] += change[1]
        return Volume(volume.array, affine)

    assert volume.same_grid(shifted(((0, 3), 0.009)))
    assert not volume.same_grid(shifted(((0, 3), 0.02)))
    # A small error of the spacing accumulates over the grid.
    assert volume.same_grid(shifted(((0, 0), 0.0009)))
    assert not volume.same_grid(shifted(((0, 0), 0.0011)))
    assert not volume.same_grid(Volume(np.zeros((10, 5, 5)), volume.affine))
    assert not volume.same_grid(volume.reoriented("LAS"))


@given(st.integers(0, 2**27 - 1))
def test_box_around_a_mask_is_the_tightest(bits: int) -> None:
    mask = np.array([bits >> n & 1 for n in range(27)], bool).reshape(3, 3, 3)
    box = Box.around(mask)
    if box is None:
        assert not mask.any()
        return
    assert mask[box.slices].sum() == mask.sum()
    places = np.argwhere(mask)
    assert box == Box(tuple(places.min(0).tolist()), tuple((places.max(0) + 1).tolist()))


def test_box_shape_margin_and_validation() -> None:
    box = Box((1, 2, 3), (2, 4, 6))
    assert box.shape == (1, 2, 3)
    assert box.grown((2, 1, 0), (3, 9, 6)) == Box((0, 1, 3), (3, 5, 6))
    assert Box.whole((4, 5, 6)).shape == (4, 5, 6)
    with pytest.raises(GeometryError):
        Box((1, 1, 1), (2, 1, 2))
