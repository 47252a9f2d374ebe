"""Rotation, zoom and elastic deformation as one interpolation of the part of the scan that the patch shows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from gtvray.data.patches.draws import Draw


@dataclass(frozen=True)
class Warp:
    """The positions in the scan of a patch's voxels.

    Attributes:
        patch_ijk: size of the patch.
        matrix: offsets from the patch's centre, in its voxels, to offsets in the scan's, shape (3, 3).
        displacement: elastic offsets in the patch's voxels, (3, i, j, k), added before the matrix is applied.
    """

    patch_ijk: tuple[int, int, int]
    matrix: NDArray[np.float64]
    displacement: Tensor | None = None

    @classmethod
    def build(cls, draw: Draw, patch_ijk: tuple[int, int, int], spacing_mm: Sequence[float], grid_mm: float) -> Warp:
        """The warp of a draw.

        Args:
            draw: the changes to the patch.
            patch_ijk: its size.
            spacing_mm: its voxel spacing.
            grid_mm: distance between points that are displaced independently.
        """
        displacement = None
        if draw.elastic_mm is not None:
            displacement = _smooth_field(draw.seed, draw.elastic_mm, patch_ijk, spacing_mm, grid_mm)
        return cls(patch_ijk, draw.matrix(spacing_mm), displacement)

    def region(self, centre_ijk: NDArray[np.float64], shape: Sequence[int]) -> tuple[NDArray[np.int64], ...]:
        """First voxel and size of the part of the scan that is needed.

        It includes one voxel around the scan where the patch reaches beyond it.

        Args:
            centre_ijk: the patch's centre, in voxels of the scan; inside it.
            shape: the scan's.
        """
        half = (np.asarray(self.patch_ijk) - 1) / 2
        if self.displacement is not None:
            half = half + self.displacement.abs().amax(dim=(1, 2, 3)).numpy()
        reach = np.abs(self.matrix) @ half
        start = np.maximum(np.floor(centre_ijk - reach), -1).astype(np.int64)
        stop = np.minimum(np.ceil(centre_ijk + reach) + 1, np.asarray(shape) + 1).astype(np.int64)
        # Two voxels at least, to interpolate between.
        return start, np.maximum(stop - start, 2)

    def sample(self, source: Tensor, centre_ijk: NDArray[np.float64]) -> Tensor:
        """Interpolate linearly; beyond the source's border its outermost voxels are repeated.

        Args:
            source: (i, j, k) float32, at least two voxels along each axis.
            centre_ijk: the patch's centre, in voxels of the source.

        Returns:
            (i, j, k) of the patch's size.
        """
        if self.displacement is None and not (self.matrix - np.diag(self.matrix.diagonal())).any():
            for axis, n in enumerate(self.patch_ijk):
                offsets = torch.arange(n, dtype=torch.float32) - (n - 1) / 2
                source = interpolate_axis(source, axis, offsets * self.matrix[axis, axis] + centre_ijk[axis])
            return source
        return _sample_slices(source, *self._coordinates(source, centre_ijk))

    def _coordinates(self, source: Tensor, centre_ijk: NDArray[np.float64]) -> list[Tensor]:
        """Coordinates in the source along i, j and k, (i, j, k) each, clamped to it."""
        offsets = [torch.arange(n, dtype=torch.float32, device=source.device) - (n - 1) / 2 for n in self.patch_ijk]
        grid = [offset.reshape([-1 if axis == a else 1 for a in range(3)]) for axis, offset in enumerate(offsets)]
        if self.displacement is not None:
            grid = [one + shift for one, shift in zip(grid, self.displacement.to(source.device), strict=True)]
        coordinates = []
        for axis, n in enumerate(source.shape):
            i, j, k = (one * float(factor) for one, factor in zip(grid, self.matrix[axis], strict=True))
            coordinates.append(((i + float(centre_ijk[axis])) + j + k).clamp_(0, n - 1))
        return coordinates


def interpolate_axis(source: Tensor, axis: int, at: Tensor) -> Tensor:
    """Linear interpolation along one axis; beyond the ends their values are repeated.

    Args:
        source: any shape.
        axis: which of its axes.
        at: coordinates along it in voxels, shape (n,).
    """
    last = source.shape[axis] - 1
    at = at.to(source.device).clamp(0, last)
    low = at.floor()
    share = (at - low).reshape([-1 if a == axis else 1 for a in range(source.ndim)])
    first = low.long()
    return torch.lerp(take(source, axis, first), take(source, axis, (first + 1).clamp_(max=last)), share)


def take(source: Tensor, axis: int, indices: Tensor) -> Tensor:
    """The values at integer indices along an axis; indices may repeat."""
    if axis < source.ndim - 1:
        return source.index_select(axis, indices)
    # The same result, several times as fast on the last axis.
    return source.gather(axis, indices.expand(*source.shape[:-1], -1))


def _sample_slices(source: Tensor, i: Tensor, j: Tensor, k: Tensor) -> Tensor:
    """Trilinear interpolation as two bilinear ones in neighbouring slices, and a linear one between them.

    torch's bilinear sampling of images is vectorised and its trilinear one is not: on one core this is three times as
    fast. The slices are stacked as one tall image; a second image, offset by one slice, shares its memory. Coordinates
    are float32, with an error of a thousandth of a voxel in an image of 10,000 rows.
    """
    depth, height, width = source.shape
    rows = (depth - 1) * height
    below = i.floor().clamp_(max=depth - 2)
    grid = torch.empty((*i.shape, 2), dtype=torch.float32, device=source.device)
    torch.mul(k, 2 / (width - 1), out=grid[..., 0])
    torch.mul(torch.add(j, below, alpha=height), 2 / (rows - 1), out=grid[..., 1])
    grid.sub_(1)
    images = source.contiguous().as_strided((1, 2, rows, width), (0, height * width, width, 1))
    low, high = functional.grid_sample(
        images, grid.view(1, -1, k.shape[2], 2), mode="bilinear", padding_mode="border", align_corners=True
    )[0]
    return torch.lerp(low.view(i.shape), high.view(i.shape), i.sub_(below))


def _smooth_field(
    seed: int, largest_mm: float, patch_ijk: Sequence[int], spacing_mm: Sequence[float], grid_mm: float
) -> Tensor:
    """Displacements in voxels, (3, i, j, k): independent at points `grid_mm` apart and linear in between."""
    points = [int(np.ceil((n - 1) * s / grid_mm)) + 1 for n, s in zip(patch_ijk, spacing_mm, strict=True)]
    field = torch.rand((3, *points), generator=torch.Generator().manual_seed(seed)) * 2 - 1
    field *= (largest_mm / torch.tensor(list(spacing_mm), dtype=torch.float32)).reshape(3, 1, 1, 1)
    for axis, (n, spacing) in enumerate(zip(patch_ijk, spacing_mm, strict=True), start=1):
        field = interpolate_axis(field, axis, torch.arange(n, dtype=torch.float32) * (spacing / grid_mm))
    return field
