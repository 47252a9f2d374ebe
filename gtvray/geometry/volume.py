"""The Volume: an array with its position in the patient."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, io_orientation, ornt_transform
from numpy.typing import NDArray

from gtvray.errors import GeometryError
from gtvray.geometry.affine import (
    Affine,
    by_text,
    check_affine,
    furthest_corner_mm,
    orientation_codes,
    spacing_from_affine,
)
from gtvray.geometry.box import Box

# Grids are the same if no voxel centre differs by more than this share of a voxel.
SAME_GRID_TOLERANCE_VOXELS = 1e-2
# Axes are parallel if a unit vector along one has no larger component along the others.
PARALLEL_TOLERANCE = 1e-3


@dataclass(frozen=True, eq=False)
class Volume:
    """A scan or a mask: `array` in (i, j, k) and `affine` (4x4, voxel indices to RAS millimetres). CT is in HU.

    Both are read-only, so that a volume can be shared safely.

    Raises:
        GeometryError: the array is not three-dimensional or the affine is not valid.
    """

    array: NDArray[Any]
    affine: Affine

    def __post_init__(self) -> None:
        array = np.asarray(self.array).view()
        if array.ndim != 3 or 0 in array.shape:
            raise GeometryError("a volume needs three non-empty dimensions", found=f"shape {array.shape}")
        array.flags.writeable = False
        affine = check_affine(self.affine).copy()
        affine.flags.writeable = False
        object.__setattr__(self, "array", array)
        object.__setattr__(self, "affine", affine)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Number of voxels along i, j, k."""
        i, j, k = self.array.shape
        return i, j, k

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Voxel spacing along i, j, k in millimetres."""
        return spacing_from_affine(self.affine)

    @property
    def orientation(self) -> str:
        """Anatomical directions of i, j, k, such as "LPI"."""
        return orientation_codes(self.affine)

    @property
    def voxel_volume_ml(self) -> float:
        """Volume of one voxel in millilitres."""
        return float(abs(np.linalg.det(self.affine[:3, :3]))) / 1000.0

    def with_array(self, array: NDArray[Any]) -> Volume:
        """A volume with other values on the same grid.

        Raises:
            GeometryError: the array has another shape.
        """
        if array.shape != self.shape:
            raise GeometryError("array does not have the shape of the grid", expected=self.shape, found=array.shape)
        return Volume(array, self.affine)

    def same_grid(self, other: Volume) -> bool:
        """Whether both have the same shape and the same voxel centres."""
        if self.shape != other.shape:
            return False
        apart_mm = furthest_corner_mm(self.affine, other.affine, self.shape)
        return apart_mm <= SAME_GRID_TOLERANCE_VOXELS * min(self.spacing_mm)

    def reoriented(self, codes: str) -> Volume:
        """The same voxels with axes permuted and flipped to the directions nearest to `codes`; exact, a view."""
        return self._with_axes(ornt_transform(io_orientation(self.affine), axcodes2ornt(tuple(codes))))

    def aligned_to(self, other: Volume) -> Volume:
        """The same voxels with axes in the order and directions of a parallel grid; exact, a view.

        The inverse of `reoriented`. Axes are compared rather than codes, since on a grid rotated by 45 degrees two axes
        are equally near to a direction.

        Raises:
            GeometryError: the axes are not parallel.
        """
        # Row: axis of other; column: own axis; entries +-1 and 0.
        exact = np.linalg.solve(other.affine[:3, :3] / other.spacing_mm, self.affine[:3, :3] / self.spacing_mm)
        turn = np.rint(exact)
        if np.abs(exact - turn).max() > PARALLEL_TOLERANCE or not (np.abs(turn).sum(axis=0) == 1).all():
            raise GeometryError(
                "the axes of the grids are not parallel",
                expected=f"{other.orientation}, each axis parallel to one of the other grid",
                found=f"{self.orientation}, rotated relative to it",
            )
        return self._with_axes(np.column_stack([np.abs(turn).argmax(axis=0), turn.sum(axis=0)]))

    def _with_axes(self, change: NDArray[np.float64]) -> Volume:
        """Permute and flip axes by nibabel's orientation array."""
        return Volume(apply_orientation(self.array, change), self.affine @ inv_ornt_aff(change, self.shape))

    def cropped(self, box: Box) -> Volume:
        """The voxels in a box; a view. The inverse is `padded` or `placed_on`.

        Raises:
            GeometryError: the box extends beyond the grid.
        """
        if not Box.whole(self.shape).holds(box):
            raise GeometryError("box extends beyond the grid", expected=f"within {self.shape}", found=box)
        return Volume(self.array[box.slices], self._affine_from(box.start_ijk))

    def padded(self, box: Box, fill: float) -> Volume:
        """The voxels in a box that contains the grid, `fill` around them. The inverse is `cropped` or `placed_on`.

        Args:
            box: in indices of this grid; negative where voxels are added before it.
            fill: value of the added voxels.

        Raises:
            GeometryError: the box does not contain the grid, or the dtype cannot represent `fill`.
        """
        own = Box.whole(self.shape)
        if not box.holds(own):
            raise GeometryError("box does not contain the grid", expected=f"around {self.shape}", found=box)
        array = self._filled(box.shape, fill)
        array[own.moved(box.start_ijk).slices] = self.array
        return Volume(array, self._affine_from(box.start_ijk))

    def placed_on(self, other: Volume, fill: float) -> Volume:
        """Copy the voxels to their positions on another grid; voxels outside it are dropped.

        Nothing is interpolated. It inverts any chain of `reoriented`, `cropped` and `padded` that started at `other` in
        one step, and extends a mask of a part of a scan to the full scan.

        Args:
            other: a volume on the target grid, whose affine is copied exactly.
            fill: value of voxels that only `other` has.

        Raises:
            GeometryError: the voxel centres of the grids do not coincide, or the dtype cannot represent `fill`.
        """
        own = self.aligned_to(other)
        # The first and the last voxel, in indices of the other grid.
        ends = np.column_stack([(0, 0, 0, 1), (*np.subtract(own.shape, 1), 1)])
        at = np.linalg.solve(other.affine, own.affine @ ends)[:3]
        start = np.rint(at[:, 0]).astype(int)
        apart = np.abs(at - np.column_stack([start, start + np.subtract(own.shape, 1)])).max()
        if apart > SAME_GRID_TOLERANCE_VOXELS:
            raise GeometryError(
                "the voxels of the grids do not coincide",
                expected=f"spacing {by_text(other.spacing_mm)} mm, shifted by an integer number of voxels",
                found=f"spacing {by_text(own.spacing_mm)} mm, offset by up to {apart:.3g} voxels",
                do="resample to the grid instead",
            )
        array = self._filled(other.shape, fill)
        first = (int(start[0]), int(start[1]), int(start[2]))
        common = Box.whole(other.shape).overlap(Box.whole(own.shape).moved((-first[0], -first[1], -first[2])))
        if common is not None:
            array[common.slices] = own.array[common.moved(first).slices]
        return other.with_array(array)

    def _filled(self, shape: tuple[int, int, int], fill: float) -> NDArray[Any]:
        with np.errstate(invalid="ignore"):
            value = np.asarray(fill).astype(self.array.dtype)
        if value != fill:
            raise GeometryError(
                "the dtype of the volume cannot represent the fill value", expected=self.array.dtype, found=fill
            )
        # In the memory order of files, first axis fastest, so that masks are written without a copy.
        return np.full(shape, value, order="F")

    def _affine_from(self, start_ijk: tuple[int, int, int]) -> Affine:
        """The affine of the grid whose first voxel has these indices in this grid."""
        affine = self.affine.copy()
        affine[:3, 3] += self.affine[:3, :3] @ np.asarray(start_ijk, dtype=np.float64)
        return affine

    def center_mm(self) -> NDArray[np.float64]:
        """The centre of the grid in RAS millimetres, shape (3,)."""
        half = (np.asarray(self.shape, dtype=np.float64) - 1) / 2
        return np.asarray(self.affine[:3, :3] @ half + self.affine[:3, 3])
