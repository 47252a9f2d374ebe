"""The Volume: an array that knows where it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, io_orientation, ornt_transform
from numpy.typing import NDArray

from gtvray.errors import GeometryError
from gtvray.geometry.affine import Affine, check_affine, orientation_codes, spacing_from_affine
from gtvray.geometry.box import Box

# Two grids are the same when no voxel centre lies further apart than this share of a voxel.
SAME_GRID_TOLERANCE_VOXELS = 1e-2


@dataclass(frozen=True, eq=False)
class Volume:
    """A scan or a mask: `array` in (i, j, k) and `affine` (4x4, voxel indices to RAS millimetres). CT is in HU.

    Both are read-only, so a volume can be shared without being changed under someone.

    Raises:
        GeometryError: the array is not three-dimensional or the affine cannot place its voxels.
    """

    array: NDArray[Any]
    affine: Affine

    def __post_init__(self) -> None:
        array = np.asarray(self.array).view()
        if array.ndim != 3 or 0 in array.shape:
            raise GeometryError("a volume has three dimensions, none of them empty", found=f"shape {array.shape}")
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
        """Other values on the same grid.

        Raises:
            GeometryError: the array has another shape.
        """
        if array.shape != self.shape:
            raise GeometryError("array is not of the grid's shape", expected=self.shape, found=array.shape)
        return Volume(array, self.affine)

    def same_grid(self, other: Volume) -> bool:
        """Whether both have the same shape and every voxel centre at the same place."""
        if self.shape != other.shape:
            return False
        corners = np.array(np.meshgrid(*[(0, n - 1) for n in self.shape])).reshape(3, -1)
        corners = np.vstack([corners, np.ones(corners.shape[1])])
        apart_mm = np.linalg.norm(((self.affine - other.affine) @ corners)[:3], axis=0)
        return bool(apart_mm.max() <= SAME_GRID_TOLERANCE_VOXELS * min(self.spacing_mm))

    def reoriented(self, codes: str) -> Volume:
        """The same voxels with axes permuted and flipped so that they point nearest to `codes`; exact, a view."""
        return self._with_axes(ornt_transform(io_orientation(self.affine), axcodes2ornt(tuple(codes))))

    def aligned_to(self, other: Volume) -> Volume:
        """The same voxels with axes in the order and directions of a parallel grid; undoes `reoriented`.

        By axes and not by codes: on a grid turned by 45 degrees two axes are equally near to a direction.
        """
        # Row: axis of other; column: own axis; entries +-1 and 0.
        turn = np.rint(np.linalg.solve(other.affine[:3, :3] / other.spacing_mm, self.affine[:3, :3] / self.spacing_mm))
        return self._with_axes(np.column_stack([np.abs(turn).argmax(axis=0), turn.sum(axis=0)]))

    def _with_axes(self, change: NDArray[np.float64]) -> Volume:
        """Axes moved and flipped as nibabel's orientation array says."""
        return Volume(apply_orientation(self.array, change), self.affine @ inv_ornt_aff(change, self.shape))

    def cropped(self, box: Box) -> Volume:
        """The voxels in a box; a view."""
        affine = self.affine.copy()
        affine[:3, 3] += self.affine[:3, :3] @ np.asarray(box.start_ijk, dtype=np.float64)
        return Volume(self.array[box.slices], affine)

    def center_mm(self) -> NDArray[np.float64]:
        """The grid's centre in RAS millimetres, shape (3,)."""
        half = (np.asarray(self.shape, dtype=np.float64) - 1) / 2
        return np.asarray(self.affine[:3, :3] @ half + self.affine[:3, 3])
