"""The interior of a scan: a ball of tissue without skin, which can leave the machine because it shows no face.

Removing the skin alone would leave a surface of the face's shape a few millimetres further in. A ball has no shape of
its own, and everything outside it is replaced by air.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cc3d
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from gtvray.errors import DataError
from gtvray.geometry import Box, Volume
from gtvray.preprocessing import AIR_HU

# Distance of the ball from the air around the patient: skin and what lies directly below it.
SKIN_MM = 10.0
LARGEST_RADIUS_MM, SMALLEST_RADIUS_MM = 50.0, 20.0
_TISSUE_HU = -300
_SEARCH_MM = 3.0
# The body is smoothed by this standard deviation: nostrils and ear canals close, so that the nasal cavity is not
# outside; fixation masks and table tops, which would enclose the air before the skin, vanish.
_SMOOTH_MM = 4.0
# Standard deviation of the filter that estimates how dense the mask is around a voxel.
_NEAR_MM = 20.0
# Air that reaches the border of the scan over a smaller area is an airway, such as the trachea.
_AIRWAY_MM2 = 1000.0
# Air around the ball, so that preprocessing finds the border of the body.
_MARGIN_VOXELS = 2


def keep_interior(scan: Volume, mask: NDArray[np.uint8]) -> Volume:
    """Crop a scan to the ball that `find_interior` returns, and replace everything outside the ball by air.

    Args:
        scan: CT in HU.
        mask: where the ball should be, on the grid of the scan; if empty, at the centre of the body.

    Raises:
        DataError: no ball of `SMALLEST_RADIUS_MM` fits into the body.
    """
    centre_ijk, radius_mm = find_interior(scan, mask)
    axes = scan.affine[:3, :3]
    i, j, k = (round(at) for at in centre_ijk)
    # As many voxels as the ball extends along each axis, and one more for the rounding of the centre.
    reach = np.ceil(radius_mm * np.linalg.norm(np.linalg.inv(axes), axis=1)).astype(int) + 1 + _MARGIN_VOXELS
    box = Box((i, j, k), (i + 1, j + 1, k + 1)).grown((int(reach[0]), int(reach[1]), int(reach[2])), scan.shape)
    inside = _distance_mm(box, centre_ijk, axes) <= radius_mm
    return scan.cropped(box).with_array(np.where(inside, scan.array[box.slices], AIR_HU))


def find_interior(scan: Volume, mask: NDArray[np.uint8]) -> tuple[list[float], float]:
    """Return the centre (i, j, k) and the radius in millimetres of a ball inside the body.

    The ball contains nothing within `SKIN_MM` of the air around the patient. Its radius is at most
    `LARGEST_RADIUS_MM`; its centre is where much of the mask is near and the radius is large.

    Args:
        scan: CT in HU.
        mask: as for `keep_interior`.

    Raises:
        DataError: no ball of `SMALLEST_RADIUS_MM` fits into the body.
    """
    steps = [max(1, round(_SEARCH_MM / spacing)) for spacing in scan.spacing_mm]
    coarse = scan.affine[:3, :3] * steps
    body = _body(_block_mean(scan.array > _TISSUE_HU, steps), coarse)
    radius = np.minimum(_clearance_mm(body, coarse) - SKIN_MM, LARGEST_RADIUS_MM)
    suitable = body & (radius >= SMALLEST_RADIUS_MM)
    if not suitable.any():
        raise DataError(
            "no region of this scan is far enough from the skin",
            expected=f"a ball of {SMALLEST_RADIUS_MM:g} mm radius, {SKIN_MM:g} mm below the skin",
        )
    # Volume times density estimates how much of the mask is in the ball. At the centroid there may be none, for example
    # between the lymph nodes of both sides.
    score = radius**3 * _nearness(_block_mean(mask > 0, steps) if mask.any() else body, coarse)
    centre = np.unravel_index(np.argmax(np.where(suitable, score, -1)), body.shape)
    # Of the block's first voxel, plus half a block.
    voxel = [float(index * step + (step - 1) / 2) for index, step in zip(centre, steps, strict=True)]
    return voxel, float(radius[centre])


def _nearness(mask: NDArray[Any], coarse: NDArray[np.float64]) -> NDArray[np.float64]:
    """How much of a mask is near each voxel; positive everywhere."""
    spacing = np.linalg.norm(coarse, axis=0)
    near = ndimage.gaussian_filter(mask.astype(np.float64), _NEAR_MM / spacing, mode="constant")
    # Beyond the reach of the filter, the nearest voxel counts.
    apart = ndimage.distance_transform_edt(mask == 0, sampling=spacing)
    return np.asarray(near + 1e-6 / (1 + apart))


def _body(tissue: NDArray[np.float32], coarse: NDArray[np.float64]) -> NDArray[np.bool_]:
    """The largest component of the smoothed tissue."""
    spacing = np.linalg.norm(coarse, axis=0)
    smooth = ndimage.gaussian_filter(tissue, _SMOOTH_MM / spacing, mode="nearest")
    return np.asarray(cc3d.largest_k(smooth > 0.5, k=1, connectivity=6)) > 0


def _clearance_mm(body: NDArray[np.bool_], coarse: NDArray[np.float64]) -> NDArray[np.float64]:
    """A lower bound of every voxel's distance from the air around the patient."""
    spacing = np.linalg.norm(coarse, axis=0)
    parts = np.asarray(cc3d.connected_components(~body, connectivity=6))
    area = np.zeros(int(parts.max()) + 1)
    for axis in range(3):
        for face in (0, -1):
            counts = np.bincount(parts.take(face, axis).ravel(), minlength=len(area))
            area += counts * float(np.prod(np.delete(spacing, axis)))
    area[0] = 0
    outside = (area >= _AIRWAY_MM2)[parts]
    if not outside.any():
        return np.full(body.shape, np.inf)
    apart = ndimage.distance_transform_edt(~outside, sampling=spacing)
    # On a sheared grid, distances can be shorter than their components along the axes suggest.
    shortest = np.linalg.svd(coarse / spacing, compute_uv=False).min()
    return np.asarray(apart * shortest - spacing.max())


def _distance_mm(box: Box, centre_ijk: Sequence[float], axes: NDArray[np.float64]) -> NDArray[np.float64]:
    """Distance of every voxel of a box from a centre, both in indices of one grid with these axes."""
    apart = [index - at for index, at in zip(np.ogrid[box.slices], centre_ijk, strict=True)]
    components = [axes[row, 0] * apart[0] + axes[row, 1] * apart[1] + axes[row, 2] * apart[2] for row in range(3)]
    return np.asarray(np.sqrt(components[0] ** 2 + components[1] ** 2 + components[2] ** 2))


def _block_mean(array: NDArray[np.bool_], steps: list[int]) -> NDArray[np.float32]:
    """Averages over blocks of `steps` voxels; the border is repeated where a block extends beyond it."""
    padded = np.pad(array, [(0, -size % step) for size, step in zip(array.shape, steps, strict=True)], mode="edge")
    blocks = [part for size, step in zip(padded.shape, steps, strict=True) for part in (size // step, step)]
    return np.asarray(padded.reshape(blocks).mean(axis=(1, 3, 5), dtype=np.float32))
