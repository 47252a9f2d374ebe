"""What a planner would have to do to a predicted mask: contour length to redraw, tumours missed and made up."""

from __future__ import annotations

import cc3d
import numpy as np

from gtvray.evaluation.surface import Mask
from gtvray.geometry import Volume


def added_path_length_mm(reference: Volume, prediction: Volume) -> float:
    """Length of the reference's contours that the prediction's do not follow, in mm, over all axial slices.

    A contour is the voxels of a slice's mask with a face neighbour in the slice that is not in it; each counts with
    the mean of the slice's two spacings. Vaassen et al. 2020 (doi:10.1016/j.phro.2019.12.001), with no tolerance.
    Axial is the axis nearest to head-foot.

    Args:
        reference: mask, any integer type.
        prediction: mask on the same grid.
    """
    axis = next(i for i, code in enumerate(reference.orientation) if code in "SI")
    wanted = _contours(reference.array != 0, axis)
    added = int(np.count_nonzero(wanted & ~_contours(prediction.array != 0, axis)))
    in_plane_mm = [spacing for i, spacing in enumerate(reference.spacing_mm) if i != axis]
    return added * sum(in_plane_mm) / 2


def count_tumours(reference: Mask, prediction: Mask) -> tuple[int, int, int]:
    """Tumours as connected components (26 neighbours): found when one voxel of them is in the other mask.

    Returns:
        components of the reference; of these, those the prediction nowhere touches; and components of the
        prediction that touch no tumour.
    """
    tumours, missed = _untouched(reference, prediction)
    _, false = _untouched(prediction, reference)
    return tumours, missed, false


def _contours(mask: Mask, axis: int) -> Mask:
    """Voxels of a mask with a neighbour outside it, in the plane across an axis; the grid's border is outside."""
    inner = mask.copy()
    for across in (other for other in range(3) if other != axis):
        shifted = np.zeros_like(mask)
        for here, there in ((slice(1, None), slice(None, -1)), (slice(None, -1), slice(1, None))):
            to, source = [slice(None)] * 3, [slice(None)] * 3
            to[across], source[across] = here, there
            shifted[...] = False
            shifted[tuple(to)] = mask[tuple(source)]
            inner &= shifted
    return mask & ~inner


def _untouched(mask: Mask, other: Mask) -> tuple[int, int]:
    """Number of components of a mask, and of those that share no voxel with the other mask."""
    labels, count = cc3d.connected_components(mask, connectivity=26, return_N=True)
    touched = np.unique(labels[other])
    return int(count), int(count - np.count_nonzero(touched))
