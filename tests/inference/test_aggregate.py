"""The blockwise accumulator equals one large array bit for bit, with less memory."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit

from gtvray.geometry import Box
from gtvray.inference import LogitAccumulator, PatchGrid, gaussian_weights

from .synthetic import begin, body_scan, run_request

sizes = st.tuples(*[st.integers(1, 70)] * 3)
patches = st.tuples(*[st.integers(1, 40)] * 3)


def _plain(grid: PatchGrid, logits_of: dict[int, np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
    """The same sums in two arrays of the size of the grid."""
    weights = gaussian_weights(grid.patch_ijk)
    total, weight = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    for number, logits in logits_of.items():
        total[grid.slices(number)] += logits * weights
        weight[grid.slices(number)] += weights
    mean = np.divide(total, weight, out=np.zeros_like(total), where=weight > 0)
    return np.where(weight > 0, expit(mean), np.float32(0))


@settings(max_examples=60, deadline=None)
@given(sizes, patches, st.floats(0, 0.7), st.integers(0, 2**32))
def test_blocks_equal_one_large_array_bit_for_bit(shape: Any, patch: Any, overlap: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    padded = tuple(max(n, p) for n, p in zip(shape, patch, strict=True))
    grid = PatchGrid.covering(padded, patch, overlap)
    numbers = np.flatnonzero(rng.random(len(grid)) < 0.6)[:40].tolist()
    logits_of = {number: rng.normal(0, 3, patch).astype(np.float32) for number in numbers}
    mean = LogitAccumulator(grid, numbers, gaussian_weights(patch), 0.5)
    for number, logits in logits_of.items():
        mean.add(number, logits)
    expected = _plain(grid, logits_of, padded)
    assert mean.read(Box.whole(padded)).tobytes() == expected.tobytes()
    marked, box = np.argwhere(expected > 0.5), mean.marked_box()
    assert (box is None) == (len(marked) == 0)
    if box is not None:
        # The box includes one more voxel on each side.
        assert (marked > box.start_ijk).all()
        assert (marked + 1 < box.stop_ijk).all()


def test_mask_only_gives_the_same_mask() -> None:
    tumours = [Box((30, 20, 60), (41, 33, 70)), Box((31, 94, 63), (34, 97, 66)), Box((100, 4, 4), (108, 10, 12))]
    scan = body_scan((120, 104, 136), tumours)
    for keep_largest in (False, True):
        whole, lean = (
            run_request(begin(scan, mode="exhaustive", keep_largest=keep_largest, mask_only=lean))
            for lean in (False, True)
        )
        mask = lean.mask()
        assert mask.array.tobytes() == whole.mask().array.tobytes()
        assert 0.9 < mask.array.sum() / sum(np.prod(box.shape) for box in tumours[: 1 if keep_largest else 3]) < 1.1


def test_blocks_are_freed_after_their_last_patch() -> None:
    """A grid ten times as long needs no more memory if nothing is marked."""
    patch, most = (16, 16, 16), []
    for length in (96, 960):
        grid = PatchGrid.covering((length, 64, 64), patch, 0.5)
        mean = LogitAccumulator(grid, range(len(grid)), gaussian_weights(patch), 0.5, mask_only=True)
        held = []
        for number in range(len(grid)):
            mean.add(number, np.full(patch, -2, np.float32))
            held.append(mean.held_bytes)
        most.append(max(held))
        assert mean.marked_box() is None
        assert held[-1] == 0
    assert most[0] == most[1] < 8 * 96 * 64 * 64
