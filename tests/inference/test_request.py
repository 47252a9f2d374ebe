"""Segmentation requests without a network: positions, weights, aggregation, masks and coverage."""

from __future__ import annotations

from itertools import pairwise, product
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from gtvray.config import InferenceConfig, PreprocessingConfig
from gtvray.geometry import Volume
from gtvray.inference import SegmentationRequest, gaussian_weights, patch_starts
from gtvray.preprocessing import prepare

from .synthetic import to_logits

PREPROCESSING = PreprocessingConfig(spacing_mm=(4.0, 4.0, 4.0))
PATCH = (16, 16, 16)


def _scan(shape: tuple[int, int, int] = (40, 44, 36), affine: np.ndarray | None = None) -> Volume:
    """An L of tissue: the bounding box of the body has an empty corner."""
    rng = np.random.default_rng(0)
    hu = np.full(shape, -1000.0)
    i, j, k = (n // 10 for n in shape)
    hu[i:-i, j : 4 * j, k:-k] = hu[i : 4 * i, j:-j, k:-k] = 40
    hu[hu > 0] += rng.normal(0, 20, int((hu > 0).sum()))
    return Volume(hu.astype(np.int16), np.diag([-4.0, -4, 4, 1]) if affine is None else affine)


def _request(scan: Volume, patch: tuple[int, int, int] = PATCH, **inference: Any) -> SegmentationRequest:
    return SegmentationRequest(prepare(scan, PREPROCESSING), PREPROCESSING, InferenceConfig(**inference), patch)


def _run(request: SegmentationRequest, network: Any) -> np.ndarray:
    while request.remaining:
        patch = request.take()
        request.put(patch.number, to_logits(network(patch.channels)))
    assert request.done
    return request.probability()


def _local(channels: np.ndarray) -> np.ndarray:
    """A probability that depends on the voxel and on the mean of its patch."""
    return (0.5 * channels[0] + 0.5 * channels[0].mean()).astype(np.float32)


@settings(max_examples=300)
@given(*[st.tuples(*[st.integers(1, 60)] * 3)] * 2, st.floats(0, 0.89), st.sampled_from(["monai", "nnunet"]))
def test_patches_cover_the_grid_with_the_requested_overlap(shape: Any, patch: Any, overlap: float, rule: Any) -> None:
    starts = patch_starts(shape, patch, overlap, rule)
    axes = [sorted({start[axis] for start in starts}) for axis in range(3)]
    assert starts == sorted(set(starts)) == list(product(*axes))
    for positions, size, side in zip(axes, shape, patch, strict=True):
        assert positions[0] == 0
        assert positions[-1] == max(0, size - side)
        for one, next_ in pairwise(positions):
            # nnU-Net's positions are rounded to voxels.
            rounded = rule == "nnunet"
            assert side - (next_ - one) >= max(0, min(side - 1, overlap * side - 1e-9) - rounded)
        # No more patches than the overlap requires.
        assert len(positions) <= max(0, size - side) / max(1, int(side * (1 - overlap))) + 2


@given(st.tuples(*[st.integers(1, 40)] * 3))
def test_weights_are_symmetric_and_decrease_from_the_centre(patch: tuple[int, int, int]) -> None:
    weights = gaussian_weights(patch)
    assert weights.shape == patch
    assert weights.dtype == np.float32
    assert weights.max() == weights[tuple(size // 2 for size in patch)] <= 1
    assert weights.min() >= np.float32(1e-3)
    for axis in range(3):
        np.testing.assert_array_equal(weights, np.flip(weights, axis))
        half = weights.take(range((patch[axis] + 1) // 2), axis)
        assert (np.diff(half, axis=axis) >= 0).all()


@pytest.mark.parametrize("patch", [(16, 16, 16), (64, 48, 40), (12, 20, 9), (7, 33, 96)])
def test_nnunet_rule_equals_nnunets_weights_and_positions(patch: tuple[int, int, int]) -> None:
    """nnU-Net filters one voxel with SciPy's Gaussian, scales it to 10 and stores it in half precision."""
    point = np.zeros(patch)
    point[tuple(size // 2 for size in patch)] = 1
    smooth = ndimage.gaussian_filter(point, [size / 8 for size in patch], 0, mode="constant", cval=0)
    expected = (10 * smooth / smooth.max()).astype(np.float16)
    expected[expected == 0] = expected[expected > 0].min()
    found = gaussian_weights(patch, "nnunet")
    np.testing.assert_allclose(found, expected.astype(np.float32), rtol=2e-3, atol=1e-7)
    assert found.max() == 10
    for size in range(5, 130, 7):
        positions = {start[0] for start in patch_starts((size, 1, 1), (patch[0], 1, 1), 0.5, "nnunet")}
        steps = int(np.ceil((size - patch[0]) / (patch[0] * 0.5))) + 1 if size > patch[0] else 1
        apart = (size - patch[0]) / (steps - 1) if steps > 1 else 0
        assert positions == {int(np.round(apart * n)) for n in range(steps)}


@pytest.mark.parametrize("mode", ["exhaustive", "body"])
@pytest.mark.parametrize("patch", [(16, 16, 16), (12, 20, 9), (64, 64, 64), (16, 64, 8)])
def test_constant_probability_is_preserved(mode: Any, patch: tuple[int, int, int]) -> None:
    request = _request(_scan(), patch, mode=mode)
    found = _run(request, lambda channels: np.full(channels.shape[1:], 0.37, np.float32))
    if mode == "exhaustive":
        np.testing.assert_allclose(found, 0.37, rtol=1e-5)
    else:
        assert ((np.abs(found - 0.37) < 1e-5) | (found == 0)).all()


def test_mask_is_on_the_grid_of_the_scan_and_at_the_tumour() -> None:
    """A bright block is segmented on an oblique left-handed grid."""
    affine = np.array([[3.0, -0.6, 0, -90], [0.6, 3.0, 0.4, 20], [0, -0.4, 4.2, 300], [0, 0, 0, 1]])
    scan = _scan(affine=affine)
    array = scan.array.copy()
    array[12:20, 9:16, 14:24] = 290
    array[28:34, 9:15, 10:16] = 290
    scan = scan.with_array(array)
    for keep_largest in (False, True):
        request = _request(scan, threshold=0.7, keep_largest=keep_largest)
        _run(request, lambda channels: channels[0])
        mask = request.mask()
        assert mask.same_grid(scan)
        assert mask.affine.tobytes() == scan.affine.tobytes()
        assert mask.array.dtype == np.uint8
        wanted = array == 290
        wanted[28:34] &= not keep_largest
        assert 2 * (mask.array & wanted).sum() / (mask.array.sum() + wanted.sum()) > 0.8
        assert bool(mask.array[28:34].any()) != keep_largest


def test_body_mode_equals_exhaustive_where_all_patches_were_run() -> None:
    scan = _scan()
    every, body = (_request(scan, (8, 8, 8), mode=mode) for mode in ("exhaustive", "body"))
    assert body.patches < every.patches
    shape = prepare(scan, PREPROCESSING).hu.shape
    starts, run, covered = patch_starts(shape, (8, 8, 8), 0.5), np.zeros(shape, int), np.zeros(shape, int)
    inside = prepare(scan, PREPROCESSING).hu.array > PREPROCESSING.body_threshold_hu
    for start in starts:
        box = tuple(slice(s, s + 8) for s in start)
        covered[box] += 1
        run[box] += inside[box].any()
    all_of_it, part = _run(every, _local), _run(body, _local)
    np.testing.assert_array_equal(part[run == covered], all_of_it[run == covered])
    assert (part[run == 0] == 0).all()
    # Every voxel of the body is covered.
    assert (run[inside] > 0).all()
    assert (run < covered).any()


@pytest.mark.parametrize("affine", [None, np.diag([-4.1, 3.7, 4.3, 1.0])])
def test_coverage_counts_what_body_mode_skips(affine: np.ndarray | None) -> None:
    """A body in the corner of a scan: skipped patches are counted relative to the full scan."""
    small = _scan(affine=affine)
    hu = np.full((60, 70, 55), -1000, np.int16)
    hu[:40, 20:64, :36] = small.array
    scan = Volume(hu, small.affine)
    every = SegmentationRequest(
        prepare(scan, PREPROCESSING, full_extent=True), PREPROCESSING, InferenceConfig(mode="exhaustive"), PATCH
    )
    body = _request(scan, PATCH, mode="body")
    bright = [_run(request, lambda channels: channels[0]) for request in (every, body)]
    full, part = every.coverage(), body.coverage()
    assert (full.patches, full.patches_skipped, full.volume_skipped_share) == (every.patches, 0, 0.0)
    assert full.patches == len(patch_starts(every.prepared.hu.shape, PATCH, 0.5))
    assert part.patches_skipped == full.patches - part.patches > 0
    assert part.volume_skipped_share > 0.3
    # Voxels covered by both have equal values, and both masks are on the grid of the scan.
    body_box = every.prepared.body
    assert body_box is not None
    seen = bright[1] > 0
    np.testing.assert_allclose(bright[0][body_box.slices][seen], bright[1][seen], atol=1e-5)
    masks = [request.mask() for request in (every, body)]
    assert masks[0].same_grid(scan)
    np.testing.assert_array_equal(masks[0].array, masks[1].array)


def test_patches_are_counted_and_answered_in_order() -> None:
    request = _request(_scan())
    count = request.patches
    assert count > 4
    first, second = request.take(), request.take()
    assert (first.number, second.number, request.remaining, request.done) == (0, 1, count - 2, False)
    assert first.channels.shape == (1, 16, 16, 16)
    with pytest.raises(AssertionError, match="order"):
        request.put(1, np.zeros((16, 16, 16), np.float32))
    with pytest.raises(AssertionError, match="answered"):
        request.probability()


def test_scan_smaller_than_a_patch_is_centred_in_it() -> None:
    scan = _scan((20, 12, 10))
    hu = prepare(scan, PREPROCESSING).hu
    request = _request(scan, (32, 32, 32), mode="exhaustive")
    assert request.patches == 1
    found = _run(request, lambda channels: channels[0])
    assert found.shape == hu.shape
    np.testing.assert_allclose(found, np.clip((hu.array + 200) / 500, 0, 1), atol=1e-5)
