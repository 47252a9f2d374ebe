"""Preparing the full extent of a scan: the body keeps its voxels, and the surroundings are added."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from gtvray.config import PreprocessingConfig
from gtvray.geometry import Box, Volume, is_sheared, resample_to_grid
from gtvray.preprocessing import AIR_HU, cut_off_share, mirror_sum, prepare, prepare_mask, restore_mask

CONFIG = PreprocessingConfig(spacing_mm=(4.0, 3.0, 5.0))
BODY = Box((9, 12, 4), (34, 30, 22))


def _scan(affine: np.ndarray | None = None, shape: tuple[int, int, int] = (52, 48, 30)) -> Volume:
    """A box of noisy tissue in uniform air, off the centre of the scan."""
    hu = np.full(shape, -1000, np.int16)
    hu[BODY.slices] = np.random.default_rng(0).normal(40, 60, BODY.shape)
    return Volume(hu, np.diag([2.0, 2.0, 3.0, 1.0]) if affine is None else affine)


def _grid(turn: Any, tilt: float, signs: Any, spacing_mm: Any) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", turn, degrees=True).as_matrix() @ [[1, 0, 0], [0, 1, tilt], [0, 0, 1]]
    affine[:3, :3] = affine[:3, :3] * np.multiply(signs, spacing_mm)
    affine[:3, 3] = 31, -7, 400
    return affine


GRIDS = st.builds(
    _grid,
    st.tuples(*[st.sampled_from([0.0, 8.0, 45.0, 180.0])] * 3),
    st.sampled_from([0.0, 0.0, 0.2]),
    st.tuples(*[st.sampled_from([1.0, -1.0])] * 3),
    st.tuples(*[st.sampled_from([1.14, 2.0, 3.0, 4.0])] * 3),
)


@settings(max_examples=60, deadline=None)
@given(GRIDS, st.booleans(), st.sampled_from(["linear", "cubic"]), st.sampled_from([0.0, 6.0, 30.0]))
def test_full_extent_keeps_the_body_and_covers_the_scan(affine, antialias, interpolation, margin_mm) -> None:
    config = CONFIG.model_copy(
        update={"antialias": antialias, "interpolation": interpolation, "body_margin_mm": margin_mm}
    )
    scan = _scan(affine)
    body, full = prepare(scan, config), prepare(scan, config, full_extent=True)
    assert full.body is not None
    assert body.extent is not None
    assert full.extent is None
    assert full.hu.shape == body.extent.shape
    assert full.body_hu.same_grid(body.hu)
    np.testing.assert_array_equal(full.body_hu.array, body.hu.array)
    # Every corner of the scan is covered, and no layer of voxels is superfluous. An orthogonal grid around a sheared
    # one ends at the centres of the outermost voxels.
    edge = 0.0 if is_sheared(affine) else 0.5
    corners = np.array(list(product(*[(-edge, n - 1 + edge) for n in scan.shape]))).T
    to_grid = np.linalg.solve(full.hu.affine, scan.affine)
    at = to_grid[:3, :3] @ corners + to_grid[:3, 3:]
    assert (at.min(axis=1) >= -0.5 - 2e-3).all()
    assert (at.max(axis=1) <= np.subtract(full.hu.shape, 0.5) + 2e-3).all()
    if not is_sheared(affine):
        layer = np.minimum(full.body.start_ijk, 1), np.minimum(np.subtract(full.hu.shape, full.body.stop_ijk), 1)
        assert (at.min(axis=1) <= np.where(layer[0], 0.5 + 2e-3, np.inf)).all()
        assert (at.max(axis=1) >= np.where(layer[1], np.subtract(full.hu.shape, 1.5) - 2e-3, -np.inf)).all()


@settings(max_examples=30, deadline=None)
@given(GRIDS.filter(lambda affine: not is_sheared(affine)), st.booleans(), st.sampled_from(["linear", "cubic"]))
def test_voxels_outside_the_body_equal_the_resampled_scan(affine, antialias, interpolation) -> None:
    config = CONFIG.model_copy(update={"antialias": antialias, "interpolation": interpolation})
    scan = _scan(affine)
    full = prepare(scan, config, full_extent=True)
    assert full.body is not None
    hu = full.hu
    order = {"linear": 1, "cubic": 3}[interpolation]
    at_once = resample_to_grid(
        scan.reoriented("RAS"),
        hu.affine,
        hu.shape,
        order=order,
        fill=AIR_HU,
        antialias=antialias,
        int16_range=(AIR_HU, 3071),
    ).array
    beyond = np.ones(hu.shape, bool)
    beyond[full.body.slices] = False
    np.testing.assert_array_equal(hu.array[beyond], at_once[beyond])
    # At the border of the crop a spline is mirrored and an average has fewer neighbours; elsewhere linear values may
    # differ by rounding.
    inner = tuple(slice(span.start + 1, span.stop - 1) for span in full.body.slices)
    if interpolation == "linear":
        assert np.abs(hu.array[inner] - at_once[inner]).max() <= 1


def test_full_extent_keeps_tissue_outside_the_body_without_a_note() -> None:
    scan = _scan()
    hu = scan.array.copy()
    hu[40:52, 34:48, 5:25] = 60
    scan = scan.with_array(hu)
    apart = scan.with_array((np.arange(52)[:, None, None] >= 40).astype(np.uint8) * (hu == 60).astype(np.uint8))
    body, full = prepare(scan, CONFIG), prepare(scan, CONFIG, full_extent=True)
    assert cut_off_share(apart, body) > 0.5
    assert cut_off_share(apart, full) == 0
    assert "cropped" in body.notes[0]
    assert full.notes == ()
    assert full.crop is None
    back = restore_mask(prepare_mask(apart, full).astype(np.float32), full, 0.5)
    assert back.affine.tobytes() == scan.affine.tobytes()
    assert 2 * (back.array & apart.array).sum() / (back.array.sum() + apart.array.sum()) > 0.9


@pytest.mark.parametrize("first", [0, 3, 6])
def test_mirror_plane_is_that_of_the_body(first: int) -> None:
    """Tissue outside the crop is mirrored beyond the body, and does not change the values within it."""
    config = CONFIG.model_copy(update={"mirrored": True})
    hu = _scan().array.copy()
    hu[BODY.start_ijk[0] + 3 : BODY.start_ijk[0] + 7, 15:20, 8:12] = 900
    hu[44:49, 10:40, 5:20] = 500
    scan = Volume(hu[first:], np.diag([2.0, 2.0, 3.0, 1.0]))
    body, full = prepare(scan, config), prepare(scan, config, full_extent=True)
    assert body.mirrored is not None
    assert full.mirrored is not None
    assert full.body is not None
    np.testing.assert_array_equal(full.mirrored[full.body.slices], body.mirrored)
    plane_sum = mirror_sum(body.hu) + 2 * full.body.start_ijk[0]
    beyond = np.ones(full.hu.shape, bool)
    beyond[full.body.slices] = False
    seen = 0
    for i in range(full.hu.shape[0]):
        if 0 <= plane_sum - i < full.hu.shape[0]:
            mirrored, opposite = full.mirrored[i][beyond[i]], full.hu.array[plane_sum - i][beyond[i]]
            np.testing.assert_array_equal(mirrored, opposite)
            seen += mirrored.size
        else:
            assert (full.mirrored[i] == AIR_HU).all()
    assert seen


def test_scan_filled_by_the_body_is_not_extended() -> None:
    scan = _scan()
    scan = scan.cropped(BODY)
    hu = scan.array.copy()
    hu[0, 0, 0] = -1000
    body, full = prepare(scan.with_array(hu), CONFIG), prepare(scan.with_array(hu), CONFIG, full_extent=True)
    assert body.extent == Box.whole(body.hu.shape)
    assert full.body == Box.whole(body.hu.shape)
    np.testing.assert_array_equal(full.hu.array, body.hu.array)
