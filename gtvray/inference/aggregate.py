"""Means of logits: over the views of a patch, and over overlapping patches in blocks. Torch-free."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import product
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from gtvray.geometry import Box
from gtvray.inference.schedule import PatchGrid, Slices

# Voxels along each side of a block: small beside a patch, and large enough for numpy.
BLOCK = 32
Block = tuple[int, int, int]
_NONE_KNOWN: Mapping[int, NDArray[np.float32]] = MappingProxyType({})


def mean_of_views(views: Iterable[NDArray[np.float32]]) -> NDArray[np.float32]:
    """The mean of arrays of one shape, summed in fp32 in the order given: the order decides the last bits."""
    first, *others = views
    total = first.copy()
    for each in others:
        total += each
    return total / np.float32(1 + len(others))


class LogitAccumulator:
    """Tumour probabilities from the weighted mean of the logits of overlapping patches, blockwise.

    A block is allocated by the first patch that reaches it. After the last one its sum becomes a probability and its
    weights are freed, so memory follows the region that is run, not the volume. Logits are averaged rather than
    probabilities, as in MONAI and nnU-Net: a confident patch counts for more. With `mask_only`, a block is freed when
    neither it nor a block beside it holds a marked voxel, since interpolation cannot mark anything there. Probabilities
    equal those of one large array bit for bit.

    Args:
        grid: all patches.
        numbers: the patches that will be added, in order.
        weights: weight of each voxel of a patch, (i, j, k).
        threshold: a voxel whose probability exceeds it is marked.
        mask_only: free the blocks that the mask does not depend on.
        known: logits (i, j, k) of some of `numbers`; they are added by themselves when their turn comes.
        inner: the box of the grid that belongs to the scan; by default the full grid.

    Attributes:
        highest: the largest probability in `inner` so far, of freed blocks too; None until a block is complete.
    """

    def __init__(
        self,
        grid: PatchGrid,
        numbers: Sequence[int],
        weights: NDArray[np.float32],
        threshold: float,
        *,
        mask_only: bool = False,
        known: Mapping[int, NDArray[np.float32]] = _NONE_KNOWN,
        inner: Box | None = None,
    ) -> None:
        self._grid, self._weights, self._threshold, self._mask_only = grid, weights, threshold, mask_only
        self._known, self._inner = known, inner
        self.highest: float | None = None
        self._expected = deque(numbers)
        self._sums: dict[Block, tuple[NDArray[np.float32], NDArray[np.float32]]] = {}
        self._means: dict[Block, NDArray[np.float32]] = {}
        self._marked: set[Block] = set()
        self._last = {block: number for number in numbers for block, _, _ in _blocks(grid.slices(number))}
        self._add_known()

    @property
    def held_bytes(self) -> int:
        """Memory of the blocks that are allocated now."""
        return sum(8 * total.size for total, _ in self._sums.values()) + sum(4 * m.size for m in self._means.values())

    def add(self, number: int, logits: NDArray[np.float32]) -> None:
        """Add the tumour logits (i, j, k) of the next patch that is not known."""
        assert number == self._expected.popleft(), "patches are added in the order of the grid"
        self._add(number, logits)
        self._add_known()

    def marked_box(self) -> Box | None:
        """A box that holds every marked voxel and one more to each side, or None; it may reach beyond the grid."""
        if not self._marked:
            return None
        corners = np.array(sorted(self._marked)) * BLOCK
        low, high = corners.min(axis=0) - 1, corners.max(axis=0) + BLOCK + 1
        return Box((int(low[0]), int(low[1]), int(low[2])), (int(high[0]), int(high[1]), int(high[2])))

    def marked(self, shape: tuple[int, ...]) -> NDArray[np.bool_] | None:
        """The marked voxels of a grid of this shape (i, j, k), or None if there are none."""
        box = self.marked_box()
        near = box.overlap(Box.whole(shape)) if box else None
        if near is None:
            return None
        marked = np.zeros(shape, bool)
        marked[near.slices] = self.read(near) > self._threshold
        return marked

    def kept(self) -> Iterator[tuple[Box, NDArray[np.float32]]]:
        """Yield the probabilities (i, j, k) of the blocks that were not freed, in `inner`, each with its box."""
        for block in sorted(self._means):
            box = self._within(block)
            if box is not None:
                yield box, self._means[block][box.moved(_corner(block)).slices]

    def read(self, box: Box) -> NDArray[np.float32]:
        """Probabilities (i, j, k) in a box of the grid; 0 where no patch was added or the block was freed."""
        result = np.zeros(box.shape, np.float32)
        for block, inside, part in _blocks(box.slices):
            if block in self._means:
                result[part] = self._means[block][inside]
        return result

    def _add_known(self) -> None:
        while self._expected and self._expected[0] in self._known:
            number = self._expected.popleft()
            self._add(number, self._known[number])

    def _add(self, number: int, logits: NDArray[np.float32]) -> None:
        weighted = logits * self._weights
        for block, inside, part in _blocks(self._grid.slices(number)):
            if block not in self._sums:
                self._sums[block] = np.zeros((BLOCK,) * 3, np.float32), np.zeros((BLOCK,) * 3, np.float32)
            total, weight = self._sums[block]
            total[inside] += weighted[part]
            weight[inside] += self._weights[part]
            if self._last[block] == number:
                self._close(block)

    def _close(self, block: Block) -> None:
        """Turn the sum of a block into probabilities, and free what `mask_only` does not need."""
        del self._last[block]
        total, weight = self._sums.pop(block)
        seen = weight > 0
        np.divide(total, weight, out=total, where=seen)
        # Outside all patches the logit is unknown; 0 would mean a probability of one half.
        total = np.where(seen, expit(total), np.float32(0))
        self._means[block] = total
        inside = self._within(block)
        if inside is not None:
            self.highest = max(self.highest or 0.0, float(total[inside.moved(_corner(block)).slices].max()))
        if bool((total > self._threshold).any()):
            self._marked.add(block)
        if not self._mask_only:
            return
        for near in _around(block):
            if near in self._means and not any(b in self._last or b in self._marked for b in _around(near)):
                del self._means[near]

    def _within(self, block: Block) -> Box | None:
        """The part of a block in `inner`."""
        corner = _corner(block)
        box = Box(corner, (corner[0] + BLOCK, corner[1] + BLOCK, corner[2] + BLOCK))
        return box if self._inner is None else box.overlap(self._inner)


def _corner(block: Block) -> Block:
    return block[0] * BLOCK, block[1] * BLOCK, block[2] * BLOCK


def _blocks(slices: Slices) -> Iterator[tuple[Block, Slices, Slices]]:
    """The blocks that a box of the grid touches: the block, the part of the block, and the part of the box."""
    axes = []
    for span in slices:
        parts = []
        for block in range(span.start // BLOCK, -(-span.stop // BLOCK)):
            low, high = max(span.start, block * BLOCK), min(span.stop, (block + 1) * BLOCK)
            at, start = block * BLOCK, span.start
            parts.append((block, slice(low - at, high - at), slice(low - start, high - start)))
        axes.append(parts)
    for i, j, k in product(*axes):
        yield (i[0], j[0], k[0]), (i[1], j[1], k[1]), (i[2], j[2], k[2])


def _around(block: Block) -> Iterator[Block]:
    """A block and its 26 neighbours."""
    for i, j, k in product((-1, 0, 1), repeat=3):
        yield block[0] + i, block[1] + j, block[2] + k
