"""Corrections that a predicted mask needs: contour length to redraw, missed tumours and false tumours."""

from __future__ import annotations

import numpy as np

from gtvray.evaluation.surface import Mask
from gtvray.geometry import Volume, label_components


def added_path_length_mm(reference: Volume, prediction: Volume) -> float:
    """Added path length in mm: length of the reference's contours that the prediction's do not cover, over all slices.

    A contour is the set of voxels of an axial slice's mask with a face neighbour in that slice outside the mask; each
    counts with the mean of the slice's two spacings. After Vaassen et al. 2020 (doi:10.1016/j.phro.2019.12.001),
    without a tolerance. Slices are taken across the axis nearest to the superior-inferior direction.

    Args:
        reference: mask of any integer type.
        prediction: mask on the same grid.
    """
    axis = next(i for i, code in enumerate(reference.orientation) if code in "SI")
    wanted = _contours(reference.array != 0, axis)
    added = int(np.count_nonzero(wanted & ~_contours(prediction.array != 0, axis)))
    in_plane_mm = [spacing for i, spacing in enumerate(reference.spacing_mm) if i != axis]
    return added * sum(in_plane_mm) / 2


def count_tumours(reference: Mask, prediction: Mask) -> tuple[int, int, int]:
    """Count tumours as connected components (26 neighbours); a tumour counts as found if the masks share a voxel of it.

    Returns:
        number of components of the reference, of those without any predicted voxel, and of components of the
        prediction without any reference voxel.
    """
    tumours, missed = _count_components(reference, prediction)
    _, false = _count_components(prediction, reference)
    return tumours, missed, false


def _contours(mask: Mask, axis: int) -> Mask:
    """Voxels of a mask with a face neighbour outside it in the plane across an axis; beyond the grid is outside."""
    inner = mask.copy()
    for across in (other for other in range(3) if other != axis):
        shifted = np.zeros_like(mask)
        for target_slice, source_slice in ((slice(1, None), slice(None, -1)), (slice(None, -1), slice(1, None))):
            target, source = [slice(None)] * 3, [slice(None)] * 3
            target[across], source[across] = target_slice, source_slice
            shifted[...] = False
            shifted[tuple(target)] = mask[tuple(source)]
            inner &= shifted
    return mask & ~inner


def _count_components(mask: Mask, other: Mask) -> tuple[int, int]:
    """Number of components of a mask, and number of those that share no voxel with the other mask."""
    labels, count = label_components(mask)
    touched = np.unique(labels[other])
    return count, int(count - np.count_nonzero(touched))
