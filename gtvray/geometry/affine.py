"""Affines: voxel indices (i, j, k) to patient millimetres (RAS, as in nibabel)."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from nibabel.orientations import aff2axcodes
from numpy.typing import NDArray

from gtvray.errors import GeometryError

# Directions may deviate from orthogonal by the rounding of float32 headers, but not by a gantry tilt.
ORTHOGONALITY_TOLERANCE = 1e-3
SPACING_RANGE_MM = (0.05, 20.0)
# No scanner has coordinates of a hundred metres, and float32 headers resolve 0.01 mm up to there.
LARGEST_ORIGIN_MM = 1e5

Affine = NDArray[np.float64]


def spacing_from_affine(affine: Affine) -> tuple[float, float, float]:
    """Voxel spacing along i, j, k in millimetres: the lengths of the affine's columns."""
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    return float(lengths[0]), float(lengths[1]), float(lengths[2])


def orientation_codes(affine: Affine) -> str:
    """The anatomical direction nearest to each axis, such as "LPI"."""
    return "".join(aff2axcodes(affine))


def furthest_corner_mm(one: Affine, other: Affine, shape: tuple[int, ...]) -> float:
    """The largest distance in mm between the positions that two affines give a voxel of a grid; it is at a corner."""
    corners = np.array(np.meshgrid(*[(0, n - 1) for n in shape[:3]])).reshape(3, -1)
    apart = (one - other) @ np.vstack([corners, np.ones(corners.shape[1])])
    return float(np.linalg.norm(apart[:3], axis=0).max())


def by_text(sizes: Iterable[float]) -> str:
    """Format sizes along the axes, such as "1.14 x 1.14 x 3"."""
    return " x ".join(f"{size:.4g}" for size in sizes)


def check_affine(affine: Affine, where: object = None) -> Affine:
    """Validate an affine and return it as float64.

    Raises:
        GeometryError: it is not 4x4, not finite, singular, or has a spacing or an origin that no CT has.
    """
    matrix = np.asarray(affine, dtype=np.float64)
    if matrix.shape != (4, 4) or not np.isfinite(matrix).all() or not np.allclose(matrix[3], (0, 0, 0, 1)):
        raise GeometryError("affine is not a finite 4x4 matrix", where=where, found=matrix.tolist())
    with np.errstate(over="ignore"):  # an overflow is rejected below
        spacing_mm = spacing_from_affine(matrix)
    low, high = SPACING_RANGE_MM
    # A rotated affine with a spacing at the limit may exceed it by rounding.
    if not all(low * (1 - 1e-6) <= value <= high * (1 + 1e-6) for value in spacing_mm):
        raise GeometryError(
            "voxel spacing is not plausible",
            where=where,
            expected=f"{low} to {high} mm on each axis",
            found=f"{by_text(spacing_mm)} mm",
            do="export the volume again with its spacing in millimetres",
        )
    if np.abs(matrix[:3, 3]).max() > LARGEST_ORIGIN_MM:
        raise GeometryError(
            "origin is not plausible",
            where=where,
            expected=f"within {LARGEST_ORIGIN_MM / 1000:.0f} m of the scanner's",
            found=f"{by_text(matrix[:3, 3])} mm",
            do="export the volume again from its source",
        )
    if abs(np.linalg.det(matrix[:3, :3] / spacing_mm)) < 0.1:
        raise GeometryError("affine is singular or nearly so", where=where, found=matrix[:3, :3].round(4).tolist())
    return matrix


def is_sheared(affine: Affine) -> bool:
    """Whether two axes are not orthogonal, as with a gantry tilt."""
    directions = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    return bool(np.abs(directions.T @ directions - np.eye(3)).max() > ORTHOGONALITY_TOLERANCE)


def orthogonal_grid(affine: Affine, shape: tuple[int, int, int]) -> tuple[Affine, tuple[int, int, int]]:
    """The smallest orthogonal grid of the same spacing that covers a sheared one.

    The plane of the first two axes is kept (for CT: the slices); the third axis becomes its normal.

    Returns:
        the affine and the shape of the grid.
    """
    spacing_mm = np.asarray(spacing_from_affine(affine))
    # QR keeps axis i and the plane of i and j, and makes k their normal.
    q, r = np.linalg.qr(affine[:3, :3])
    directions = q * np.sign(np.diag(r))
    corners = np.array(np.meshgrid(*[(0, n - 1) for n in shape])).reshape(3, -1)
    corners_mm = affine[:3, :3] @ corners + affine[:3, 3:]
    along = directions.T @ corners_mm
    low, high = along.min(axis=1), along.max(axis=1)
    size = np.ceil((high - low) / spacing_mm - 1e-6).astype(int) + 1
    result = np.eye(4)
    result[:3, :3] = directions * spacing_mm
    result[:3, 3] = directions @ low
    return result, (int(size[0]), int(size[1]), int(size[2]))
