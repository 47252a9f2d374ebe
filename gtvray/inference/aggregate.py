"""Logits of overlapping patches put together in blocks: memory follows what is looked at, not the volume."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from gtvray.geometry import Box
from gtvray.inference.schedule import PatchGrid, Slices

# Voxels along each side of a block: small beside a patch, and large enough for numpy.
BLOCK = 32
Block = tuple[int, int, int]


class BlockMean:
    """Tumour probabilities from the weighted means of patches' logits; patches come in a known order.

    A block exists from the first patch that reaches it. After the last one its sum becomes a probability and its
    weights go. Logits are averaged, as MONAI's and nnU-Net's chains do: a patch that is sure counts for more.
    With `mask_only`, a block goes altogether when neither it nor a block beside it holds a marked voxel: interpolation
    cannot mark anything there. Probabilities are those of one large array to the bit.

    Args:
        grid: all patches.
        numbers: those that will be added, in order.
        weights: of a voxel by its place in the patch, (i, j, k).
        threshold: a voxel whose probability exceeds it is marked.
        mask_only: whether to let go of what the mask does not depend on.
    """

    def __init__(
        self,
        grid: PatchGrid,
        numbers: Sequence[int],
        weights: NDArray[np.float32],
        threshold: float,
        *,
        mask_only: bool = False,
    ) -> None:
        self._grid, self._weights, self._threshold, self._mask_only = grid, weights, threshold, mask_only
        self._sums: dict[Block, tuple[NDArray[np.float32], NDArray[np.float32]]] = {}
        self._found: dict[Block, NDArray[np.float32]] = {}
        self._marked: set[Block] = set()
        self._last = {block: number for number in numbers for block, _, _ in _blocks(grid.slices(number))}

    @property
    def held_bytes(self) -> int:
        """What the blocks take now."""
        return sum(8 * total.size for total, _ in self._sums.values()) + sum(4 * m.size for m in self._found.values())

    def add(self, number: int, logits: NDArray[np.float32]) -> None:
        """A patch's answer: logits of the tumour (i, j, k)."""
        weighted = logits * self._weights
        for block, inside, part in _blocks(self._grid.slices(number)):
            if block not in self._sums:
                self._sums[block] = np.zeros((BLOCK,) * 3, np.float32), np.zeros((BLOCK,) * 3, np.float32)
            total, weight = self._sums[block]
            total[inside] += weighted[part]
            weight[inside] += self._weights[part]
            if self._last[block] == number:
                self._close(block)

    def marked_box(self) -> Box | None:
        """A box that holds every marked voxel and one more to each side, or None; it may reach beyond the grid."""
        if not self._marked:
            return None
        corners = np.array(sorted(self._marked)) * BLOCK
        low, high = corners.min(axis=0) - 1, corners.max(axis=0) + BLOCK + 1
        return Box((int(low[0]), int(low[1]), int(low[2])), (int(high[0]), int(high[1]), int(high[2])))

    def read(self, box: Box) -> NDArray[np.float32]:
        """Probabilities in a box of the grid; 0 where no patch was, or what was let go."""
        result = np.zeros(box.shape, np.float32)
        for block, inside, part in _blocks(box.slices):
            if block in self._found:
                result[part] = self._found[block][inside]
        return result

    def _close(self, block: Block) -> None:
        del self._last[block]
        total, weight = self._sums.pop(block)
        seen = weight > 0
        np.divide(total, weight, out=total, where=seen)
        # Beyond the patches nothing is known, and zero would be a probability of a half.
        total = np.where(seen, expit(total), np.float32(0))
        self._found[block] = total
        if bool((total > self._threshold).any()):
            self._marked.add(block)
        if not self._mask_only:
            return
        for near in _around(block):
            if near in self._found and not any(b in self._last or b in self._marked for b in _around(near)):
                del self._found[near]


def _blocks(slices: Slices) -> Iterator[tuple[Block, Slices, Slices]]:
    """The blocks that a box of the grid lies in: which, where in the block, and where in the box."""
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
