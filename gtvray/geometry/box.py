"""A box of voxels, by which volumes are cropped and padded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gtvray.errors import GeometryError


@dataclass(frozen=True)
class Box:
    """Half-open voxel ranges on a grid: `start_ijk` is included, `stop_ijk` is not."""

    start_ijk: tuple[int, int, int]
    stop_ijk: tuple[int, int, int]

    def __post_init__(self) -> None:
        if any(stop <= start for start, stop in zip(self.start_ijk, self.stop_ijk, strict=True)):
            raise GeometryError("box is empty", found=f"{self.start_ijk} to {self.stop_ijk}")

    @classmethod
    def whole(cls, shape: tuple[int, ...]) -> Box:
        """The box of all voxels of a grid."""
        return cls((0, 0, 0), (int(shape[0]), int(shape[1]), int(shape[2])))

    @classmethod
    def around(cls, mask: NDArray[Any]) -> Box | None:
        """The tightest box around the voxels of a mask, or None for an empty mask."""
        ranges = [(0, 0)] * 3
        # The axis that is slowest in memory first: only it scans the full mask, the others the part that remains.
        for axis in sorted(range(3), key=lambda a: -abs(mask.strides[a])):
            hits = np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != axis)))
            if hits.size == 0:
                return None
            ranges[axis] = (int(hits[0]), int(hits[-1]) + 1)
            mask = mask[(slice(None),) * axis + (slice(*ranges[axis]),)]
        return cls(*zip(*ranges, strict=True))

    @property
    def shape(self) -> tuple[int, int, int]:
        """Number of voxels along i, j, k."""
        size = [stop - start for start, stop in zip(self.start_ijk, self.stop_ijk, strict=True)]
        return size[0], size[1], size[2]

    @property
    def slices(self) -> tuple[slice, slice, slice]:
        """The box as an index into an array of the grid."""
        i, j, k = (slice(start, stop) for start, stop in zip(self.start_ijk, self.stop_ijk, strict=True))
        return i, j, k

    def grown(self, margin_ijk: tuple[int, int, int], shape: tuple[int, ...]) -> Box:
        """The box with a margin on each side, clipped to the grid."""
        start = [max(0, s - m) for s, m in zip(self.start_ijk, margin_ijk, strict=True)]
        stop = [min(int(n), s + m) for s, m, n in zip(self.stop_ijk, margin_ijk, shape, strict=True)]
        return Box((start[0], start[1], start[2]), (stop[0], stop[1], stop[2]))

    def holds(self, other: Box) -> bool:
        """Whether another box lies entirely within this one."""
        return all(
            s <= start and stop <= t
            for s, t, start, stop in zip(self.start_ijk, self.stop_ijk, other.start_ijk, other.stop_ijk, strict=True)
        )

    def overlap(self, other: Box) -> Box | None:
        """The voxels in both boxes, or None if there are none."""
        start = [max(pair) for pair in zip(self.start_ijk, other.start_ijk, strict=True)]
        stop = [min(pair) for pair in zip(self.stop_ijk, other.stop_ijk, strict=True)]
        if any(t <= s for s, t in zip(start, stop, strict=True)):
            return None
        return Box((start[0], start[1], start[2]), (stop[0], stop[1], stop[2]))

    def moved(self, origin_ijk: tuple[int, int, int]) -> Box:
        """The same voxels in the indices of a grid that begins at `origin_ijk` of this one."""
        start = [s - o for s, o in zip(self.start_ijk, origin_ijk, strict=True)]
        stop = [s - o for s, o in zip(self.stop_ijk, origin_ijk, strict=True)]
        return Box((start[0], start[1], start[2]), (stop[0], stop[1], stop[2]))
