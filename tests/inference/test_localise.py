"""Localised inference: the mask equals that of body mode, or the full body is run."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gtvray.geometry import Box, Volume
from gtvray.inference import PatchGrid, SegmentationRequest
from gtvray.inference.localise import BEYOND, EMPTY, UNSURE

from .synthetic import TUMOUR_HU, Network, begin, body_scan, run_request, sees_bone, to_logits

TUMOUR = Box((28, 24, 20), (37, 31, 29))


def _both(
    scan: Volume, network: Network = sees_bone, **inference: Any
) -> tuple[SegmentationRequest, SegmentationRequest]:
    localised, body = (run_request(begin(scan, mode=mode, **inference), network) for mode in ("localised", "body"))
    return localised, body


@settings(max_examples=150, deadline=None)
@given(*[st.tuples(*[st.integers(1, 60)] * 3)] * 2, st.floats(0, 0.85))
def test_coarse_patches_cover_every_voxel(shape: Any, patch: Any, overlap: float) -> None:
    padded = tuple(max(n, p) for n, p in zip(shape, patch, strict=True))
    grid = PatchGrid.covering(padded, patch, overlap)
    covered, sparse = np.zeros(padded, bool), grid.sparse()
    for number in sparse:
        covered[grid.slices(number)] = True
    assert covered.all()
    assert sparse == sorted(set(sparse))
    # Along an axis there are at most twice as many as fit side by side.
    assert len(sparse) <= np.prod([2 * -(-n // p) for n, p in zip(padded, patch, strict=True)])


@settings(max_examples=100, deadline=None)
@given(*[st.tuples(*[st.integers(1, 30)] * 3)] * 2, st.tuples(*[st.integers(0, 5)] * 3), st.integers(0, 2**32))
def test_touching_patches_are_those_that_contain_the_mask(shape: Any, patch: Any, margin: Any, seed: int) -> None:
    padded = tuple(max(n, p) for n, p in zip(shape, patch, strict=True))
    grid, mask = PatchGrid.covering(padded, patch, 0.5), np.zeros(padded, bool)
    voxel = tuple(np.random.default_rng(seed).integers(0, padded))
    mask[voxel] = True
    reach = [
        all(span.start - m <= v < span.stop + m for span, v, m in zip(grid.slices(n), voxel, margin, strict=True))
        for n in range(len(grid))
    ]
    assert grid.touching(mask, margin) == np.flatnonzero(reach).tolist()


@pytest.mark.parametrize(
    "tumours",
    [
        [TUMOUR],
        [Box((6, 6, 6), (10, 11, 9)), Box((52, 46, 38), (57, 50, 43))],
        # At the border of the scan, and of one voxel.
        [Box((0, 20, 40), (9, 30, 48))],
        [Box((30, 30, 30), (31, 31, 31))],
    ],
)
def test_localised_mask_equals_body_mode_voxel_for_voxel(tumours: list[Box]) -> None:
    scan = body_scan(tumours=tumours)
    localised, body = _both(scan)
    assert localised.mask().array.tobytes() == body.mask().array.tobytes()
    assert 0.9 < localised.mask().array.sum() / sum(np.prod(box.shape) for box in tumours) < 1.1
    seen, all_of_it = localised.coverage(), body.coverage()
    assert (seen.mode, seen.fallback) == ("localised", None)
    assert seen.patches < 0.6 * all_of_it.patches
    assert seen.volume_skipped_share > all_of_it.volume_skipped_share
    assert body.patches == all_of_it.patches


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(*[st.tuples(*[st.integers(1, 40)] * 3)] * 4, st.floats(0, 0.85), st.sampled_from(["monai", "nnunet"]))
def test_patches_of_a_part_coincide_with_those_of_the_full_extent(
    shape: Any, before: Any, after: Any, patch: Any, overlap: float, rule: Any
) -> None:
    extent = Box(tuple(-n for n in before), tuple(n + more for n, more in zip(shape, after, strict=True)))
    padded = tuple(max(n, p) for n, p in zip(extent.shape, patch, strict=True))
    # An extent smaller than a patch is centred in it.
    first = [low - (p // 2 - n // 2) * (n < p) for low, n, p in zip(extent.start_ijk, extent.shape, patch, strict=True)]
    whole = PatchGrid.covering(padded, patch, overlap, rule)
    expected = set()
    for number in range(len(whole)):
        start = tuple(span.start + low for span, low in zip(whole.slices(number), first, strict=True))
        if all(-side < first_voxel < n for first_voxel, side, n in zip(start, patch, shape, strict=True)):
            expected.add(start)
    grid, frame = PatchGrid.reaching(shape, extent, patch, overlap, rule)
    starts = [[s.start + low for s, low in zip(grid.slices(n), frame.start_ijk, strict=True)] for n in range(len(grid))]
    assert {(i, j, k) for i, j, k in starts} == expected
    assert frame.holds(Box.whole(shape))
    assert frame.shape == tuple(axis[-1] + side for axis, side in zip(grid.axes, patch, strict=True))


@pytest.mark.parametrize("codes", ["LPS", "RAS", "SAL", "IRP"])
def test_reoriented_scans_give_the_same_localised_mask(codes: str) -> None:
    scan = body_scan(tumours=[TUMOUR])
    turned = scan.reoriented(codes)
    mask = run_request(begin(turned, mode="localised")).mask()
    assert mask.same_grid(turned)
    expected = run_request(begin(scan, mode="localised")).mask()
    np.testing.assert_array_equal(mask.aligned_to(scan).array, expected.array)


def test_empty_or_unsure_coarse_pass_falls_back_to_the_body() -> None:
    cases = {EMPTY: sees_bone, UNSURE: lambda channels: 0.45 * (channels[0] > 0.8).astype(np.float32)}
    for reason, network in cases.items():
        scan = body_scan(tumours=[TUMOUR] if reason == UNSURE else [])
        localised, body = _both(scan, network)
        seen = localised.coverage()
        assert (seen.mode, seen.fallback) == ("body", reason)
        assert localised.probability().tobytes() == body.probability().tobytes()
        # Logits of the coarse pass are reused.
        assert seen.patches == body.patches


def test_mask_at_the_border_of_the_region_falls_back_to_the_body() -> None:
    """The coarse pass finds the bright end of a rod, later patches its darker rest too."""
    rod, head = Box((8, 16, 16), (150, 22, 22)), Box((10, 17, 17), (16, 21, 21))
    scan = body_scan((160, 48, 48), [rod])
    scan = scan.with_array(np.where(scan.array == TUMOUR_HU, 240, scan.array))
    hu = scan.array.copy()
    hu[head.slices] = TUMOUR_HU
    request = begin(scan.with_array(hu), mode="localised")
    coarse, ran = request.patches, 0
    while request.remaining:
        patch, ran = request.take(), ran + 1
        request.put(patch.number, to_logits(patch.channels[0] > (0.9 if ran <= coarse else 0.8)))
    seen = request.coverage()
    assert seen.fallback == BEYOND
    assert seen.patches_skipped == begin(scan, mode="body").coverage().patches_skipped
    # The far end lies outside the regions searched before.
    assert request.mask().array[140:150, 16:22, 16:22].any()


@pytest.mark.parametrize("batch_size", [2, 3, 7])
def test_mask_does_not_depend_on_the_batch_size(batch_size: int) -> None:
    scan = body_scan(tumours=[TUMOUR])
    alone = run_request(begin(scan, mode="localised"))
    together = run_request(begin(scan, mode="localised"), batch_size=batch_size)
    assert together.probability().tobytes() == alone.probability().tobytes()
    assert together.coverage() == alone.coverage()


def test_coverage_reports_skipped_patches_by_mode() -> None:
    scan = body_scan((64, 56, 48), [TUMOUR])
    array = scan.array.copy()
    array[40:, 30:] = -1000
    array[28:37, 24:31, 20:29] = TUMOUR_HU
    found = {mode: run_request(begin(scan.with_array(array), mode=mode)).coverage() for mode in ("exhaustive", "body")}
    assert found["exhaustive"].patches_skipped == 0
    assert found["exhaustive"].volume_skipped_share == 0
    assert found["body"].patches_skipped == found["exhaustive"].patches - found["body"].patches > 0
    assert found["body"].volume_skipped_share > found["exhaustive"].volume_skipped_share
