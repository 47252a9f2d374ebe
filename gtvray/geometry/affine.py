"""Affines: voxel indices (i, j, k) to patient millimetres (RAS, as nibabel has it)."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from nibabel.orientations import aff2axcodes
from numpy.typing import NDArray

from gtvray.errors import GeometryError

# Directions may deviate from orthogonal by rounding in float32 headers, not by gantry tilt (degrees of arc).
ORTHOGONALITY_TOLERANCE = 1e-3
SPACING_RANGE_MM = (0.05, 20.0)
# No scanner's coordinates reach a hundred metres, and float32 headers place a voxel to 0.01 mm up to there.
FURTHEST_ORIGIN_MM = 1e5

Affine = NDArray[np.float64]


def spacing_from_affine(affine: Affine) -> tuple[float, float, float]:
    """Voxel spacing along i, j, k in millimetres: the lengths of the affine's columns."""
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    return float(lengths[0]), float(lengths[1]), float(lengths[2])


def orientation_codes(affine: Affine) -> str:
    """The anatomical direction each axis points to, nearest to it, such as "LPI"."""
    return "".join(aff2axcodes(affine))


def furthest_corner_mm(one: Affine, other: Affine, shape: tuple[int, ...]) -> float:
    """How far apart two affines put a voxel of a grid of this shape, at most; it is a corner's."""
    corners = np.array(np.meshgrid(*[(0, n - 1) for n in shape[:3]])).reshape(3, -1)
    apart = (one - other) @ np.vstack([corners, np.ones(corners.shape[1])])
    return float(np.linalg.norm(apart[:3], axis=0).max())


def by_text(sizes: Iterable[float]) -> str:
    """Sizes along the axes as people write them, such as "1.14 x 1.14 x 3"."""
    return " x ".join(f"{size:.4g}" for size in sizes)


def check_affine(affine: Affine, where: object = None) -> Affine:
    """Return the affine as float64, or say why it cannot place a voxel.

    Raises:
        GeometryError: not 4x4, not finite, singular, or of a spacing or an origin no CT has.
    """
    matrix = np.asarray(affine, dtype=np.float64)
    if matrix.shape != (4, 4) or not np.isfinite(matrix).all() or not np.allclose(matrix[3], (0, 0, 0, 1)):
        raise GeometryError("affine is not a finite 4x4 matrix", where=where, found=matrix.tolist())
    with np.errstate(over="ignore"):  # what overflows is refused, not warned about
        spacing_mm = spacing_from_affine(matrix)
    low, high = SPACING_RANGE_MM
    # A rotation's rounding may carry a spacing at the limit past it.
    if not all(low * (1 - 1e-6) <= value <= high * (1 + 1e-6) for value in spacing_mm):
        raise GeometryError(
            "voxel spacing is not plausible",
            where=where,
            expected=f"{low} to {high} mm on each axis",
            found=f"{by_text(spacing_mm)} mm",
            do="export the volume again with its spacing in millimetres",
        )
    if np.abs(matrix[:3, 3]).max() > FURTHEST_ORIGIN_MM:
        raise GeometryError(
            "origin is not plausible",
            where=where,
            expected=f"within {FURTHEST_ORIGIN_MM / 1000:.0f} m of the scanner's",
            found=f"{by_text(matrix[:3, 3])} mm",
            do="export the volume again from where it came from",
        )
    if abs(np.linalg.det(matrix[:3, :3] / spacing_mm)) < 0.1:
        raise GeometryError("affine is singular or nearly so", where=where, found=matrix[:3, :3].round(4).tolist())
    return matrix


def is_sheared(affine: Affine) -> bool:
    """Whether two axes are not at right angles (gantry tilt, for one)."""
    directions = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    return bool(np.abs(directions.T @ directions - np.eye(3)).max() > ORTHOGONALITY_TOLERANCE)


def orthogonal_grid(affine: Affine, shape: tuple[int, int, int]) -> tuple[Affine, tuple[int, int, int]]:
    """The smallest orthogonal grid of the same spacing that covers a sheared one.

    The first two axes' plane is kept (for CT: the slices); the third becomes its normal.

    Returns:
        the new affine and shape.
    """
    spacing_mm = np.asarray(spacing_from_affine(affine))
    # QR keeps axis i and the plane of i and j, and turns k into their normal.
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
