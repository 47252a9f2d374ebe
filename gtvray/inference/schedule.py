"""Where patches lie, and how much a voxel's answer counts by its place in the patch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

from gtvray.config import SlidingWindow
from gtvray.geometry import Box

Slices = tuple[slice, slice, slice]


@dataclass(frozen=True)
class PatchGrid:
    """The patches that cover a grid: every combination of first voxels on its axes, numbered with the last fastest.

    Attributes:
        axes: first voxels along i, j, k.
        patch_ijk: size of a patch.
    """

    axes: tuple[tuple[int, ...], ...]
    patch_ijk: tuple[int, int, int]

    @classmethod
    def covering(
        cls, shape: tuple[int, ...], patch_ijk: tuple[int, int, int], overlap: float, rule: SlidingWindow = "monai"
    ) -> PatchGrid:
        """The patches of a sliding window; neighbours share at least `overlap` of a patch.

        MONAI takes whole steps and moves the last patch back into the grid; nnU-Net has all lie evenly. An axis shorter
        than the patch has one start, 0.
        """
        return cls(tuple(_places(*axis, overlap, rule) for axis in zip(shape, patch_ijk, strict=True)), patch_ijk)

    @classmethod
    def reaching(
        cls,
        shape: tuple[int, ...],
        extent: Box,
        patch_ijk: tuple[int, int, int],
        overlap: float,
        rule: SlidingWindow = "monai",
    ) -> tuple[PatchGrid, Box]:
        """Those of the patches that cover an extent which reach a grid in it.

        Args:
            shape: of the grid.
            extent: in voxels of the grid, which it holds; one smaller than the patch sits in its middle.
            patch_ijk: size of a patch.
            overlap: the share of a patch that neighbours have in common at least.
            rule: whose sliding window it is.

        Returns:
            the patches, and the box of the grid's voxels that they take, whose first voxel is theirs.
        """
        axes, starts, stops = [], [], []
        for size, low, high, side in zip(shape, extent.start_ijk, extent.stop_ijk, patch_ijk, strict=True):
            first = low - max(0, side // 2 - (high - low) // 2)
            places = [first + place for place in _places(high - low, side, overlap, rule)]
            kept = [place for place in places if -side < place < size]
            axes.append(tuple(place - kept[0] for place in kept))
            starts.append(kept[0])
            stops.append(kept[-1] + side)
        (i, j, k), (u, v, w) = starts, stops
        return cls(tuple(axes), patch_ijk), Box((i, j, k), (u, v, w))

    def __len__(self) -> int:
        return len(self.axes[0]) * len(self.axes[1]) * len(self.axes[2])

    def slices(self, number: int) -> Slices:
        """A patch as an index into an array of the grid."""
        counts = [len(axis) for axis in self.axes]
        places = np.unravel_index(number, counts)
        i, j, k = (axis[place] for axis, place in zip(self.axes, places, strict=True))
        a, b, c = self.patch_ijk
        return slice(i, i + a), slice(j, j + b), slice(k, k + c)

    def touching(self, mask: NDArray[np.bool_], margin_ijk: tuple[int, int, int] = (0, 0, 0)) -> list[int]:
        """The patches with a voxel of a mask (i, j, k) in them, or within a margin of them, in order."""
        for axis, (starts, side, margin) in enumerate(zip(self.axes, self.patch_ijk, margin_ijk, strict=True)):
            before = (slice(None),) * axis
            spans = [slice(max(0, start - margin), start + side + margin) for start in starts]
            mask = np.stack([mask[(*before, span)].any(axis=axis) for span in spans], axis=axis)
        return [int(number) for number in np.flatnonzero(mask)]

    def sparse(self) -> list[int]:
        """As few of the patches as leave no voxel without one, in order."""
        kept = []
        for starts, side in zip(self.axes, self.patch_ijk, strict=True):
            places = [0]
            while places[-1] < len(starts) - 1:
                reach = starts[places[-1]] + side
                places.append(max(place for place, start in enumerate(starts) if start <= reach))
            kept.append(places)
        counts = [len(axis) for axis in self.axes]
        return [int(np.ravel_multi_index(places, counts)) for places in product(*kept)]


def patch_starts(
    shape: tuple[int, int, int], patch_ijk: tuple[int, int, int], overlap: float, rule: SlidingWindow = "monai"
) -> list[tuple[int, int, int]]:
    """First voxels of the patches that cover a grid, in the order of `PatchGrid`."""
    return [(i, j, k) for i, j, k in product(*PatchGrid.covering(shape, patch_ijk, overlap, rule).axes)]


def gaussian_weights(patch_ijk: tuple[int, int, int], rule: SlidingWindow = "monai") -> NDArray[np.float32]:
    """Weights (i, j, k) that fall from the centre, sigma an eighth of the patch; never zero.

    MONAI's are symmetric and no lower than 0.001. nnU-Net's peak, 10, is at voxel size // 2; they end four sigma from
    it along an axis, are rounded to half precision, and where that gives zero are the smallest other.
    """
    falls = []
    for size in patch_ijk:
        sigma, centre = size / 8, (size - 1) / 2 if rule == "monai" else size // 2
        offset = np.arange(size) - centre
        fall = np.exp(-0.5 * (offset / sigma) ** 2)
        falls.append(fall if rule == "monai" else np.where(np.abs(offset) <= int(4 * sigma + 0.5), fall, 0))
    weights = falls[0][:, None, None] * falls[1][None, :, None] * falls[2][None, None, :]
    if rule == "monai":
        return np.asarray(np.maximum(weights, 1e-3), dtype=np.float32)
    half = (10 * weights).astype(np.float16)
    half[half == 0] = half[half > 0].min()
    return half.astype(np.float32)


def _places(size: int, patch: int, overlap: float, rule: SlidingWindow) -> tuple[int, ...]:
    """First voxels of the patches along an axis."""
    room, step = max(0, size - patch), patch * (1 - overlap)
    if rule == "monai":
        whole = max(1, int(step))
        return tuple(min(whole * n, room) for n in range(-(-room // whole) + 1))
    last = math.ceil(room / max(1, step))
    return tuple(round(room / last * n) if last else 0 for n in range(last + 1))
