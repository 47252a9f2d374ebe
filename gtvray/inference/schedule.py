"""The sliding window: positions of patches, and the weight of each voxel of a patch. Torch-free."""

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
    """Patches that cover a grid: every combination of start voxels on its axes, numbered with the last axis fastest.

    Attributes:
        axes: start voxels along i, j, k.
        patch_ijk: size of a patch.
    """

    axes: tuple[tuple[int, ...], ...]
    patch_ijk: tuple[int, int, int]

    @classmethod
    def covering(
        cls, shape: tuple[int, ...], patch_ijk: tuple[int, int, int], overlap: float, rule: SlidingWindow = "monai"
    ) -> PatchGrid:
        """The patches of a sliding window; neighbours share at least `overlap` of a patch.

        MONAI takes steps of equal size and moves the last patch back into the grid; nnU-Net spaces all patches evenly.
        An axis shorter than the patch has one start, 0.
        """
        return cls(tuple(_starts(*axis, overlap, rule) for axis in zip(shape, patch_ijk, strict=True)), patch_ijk)

    @classmethod
    def reaching(
        cls,
        shape: tuple[int, ...],
        extent: Box,
        patch_ijk: tuple[int, int, int],
        overlap: float,
        rule: SlidingWindow = "monai",
    ) -> tuple[PatchGrid, Box]:
        """Of the patches that cover an extent, those that overlap a grid within it.

        Args:
            shape: of the grid.
            extent: in voxels of the grid, which it contains; an extent smaller than the patch is centred in it.
            patch_ijk: size of a patch.
            overlap: smallest share of a patch that neighbours have in common.
            rule: whose sliding window to use.

        Returns:
            the patches, numbered on a grid of their own, and that grid's box in voxels of the given one.
        """
        axes, starts, stops = [], [], []
        for size, low, high, side in zip(shape, extent.start_ijk, extent.stop_ijk, patch_ijk, strict=True):
            first = low - max(0, side // 2 - (high - low) // 2)
            kept = [s for s in (first + s for s in _starts(high - low, side, overlap, rule)) if -side < s < size]
            axes.append(tuple(start - kept[0] for start in kept))
            starts.append(kept[0])
            stops.append(kept[-1] + side)
        (i, j, k), (u, v, w) = starts, stops
        return cls(tuple(axes), patch_ijk), Box((i, j, k), (u, v, w))

    def __len__(self) -> int:
        return len(self.axes[0]) * len(self.axes[1]) * len(self.axes[2])

    def slices(self, number: int) -> Slices:
        """A patch as an index into an array of the grid."""
        counts = [len(axis) for axis in self.axes]
        i, j, k = (axis[index] for axis, index in zip(self.axes, np.unravel_index(number, counts), strict=True))
        a, b, c = self.patch_ijk
        return slice(i, i + a), slice(j, j + b), slice(k, k + c)

    def touching(self, mask: NDArray[np.bool_], margin_ijk: tuple[int, int, int] = (0, 0, 0)) -> list[int]:
        """The patches that contain a voxel of a mask (i, j, k), or have one within a margin, in order."""
        for axis, (starts, side, margin) in enumerate(zip(self.axes, self.patch_ijk, margin_ijk, strict=True)):
            before = (slice(None),) * axis
            spans = [slice(max(0, start - margin), start + side + margin) for start in starts]
            mask = np.stack([mask[(*before, span)].any(axis=axis) for span in spans], axis=axis)
        return [int(number) for number in np.flatnonzero(mask)]

    def sparse(self) -> list[int]:
        """The fewest of the patches that cover every voxel, in order."""
        kept = []
        for starts, side in zip(self.axes, self.patch_ijk, strict=True):
            indices = [0]
            while indices[-1] < len(starts) - 1:
                reach = starts[indices[-1]] + side
                indices.append(max(index for index, start in enumerate(starts) if start <= reach))
            kept.append(indices)
        counts = [len(axis) for axis in self.axes]
        return [int(np.ravel_multi_index(indices, counts)) for indices in product(*kept)]


def patch_starts(
    shape: tuple[int, int, int], patch_ijk: tuple[int, int, int], overlap: float, rule: SlidingWindow = "monai"
) -> list[tuple[int, int, int]]:
    """Start voxels of the patches that cover a grid, in the order of `PatchGrid`."""
    return [(i, j, k) for i, j, k in product(*PatchGrid.covering(shape, patch_ijk, overlap, rule).axes)]


def gaussian_weights(patch_ijk: tuple[int, int, int], rule: SlidingWindow = "monai") -> NDArray[np.float32]:
    """Gaussian weights (i, j, k) of a patch, sigma an eighth of its size; never zero.

    MONAI's are symmetric and at least 0.001. nnU-Net's have their maximum, 10, at voxel size // 2, are truncated at
    four sigma along each axis and rounded to half precision; zeros are replaced by the smallest other value.
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


def _starts(size: int, patch: int, overlap: float, rule: SlidingWindow) -> tuple[int, ...]:
    """Start voxels of the patches along an axis."""
    end, step = max(0, size - patch), patch * (1 - overlap)
    if rule == "monai":
        voxels = max(1, int(step))
        return tuple(min(voxels * n, end) for n in range(-(-end // voxels) + 1))
    last = math.ceil(end / max(1, step))
    return tuple(round(end / last * n) if last else 0 for n in range(last + 1))
