"""Connected components of masks, with all 26 neighbours of a voxel."""

from __future__ import annotations

from typing import Any

import cc3d
import numpy as np
from numpy.typing import NDArray

from gtvray.geometry.box import Box


def label_components(mask: NDArray[np.bool_]) -> tuple[NDArray[np.unsignedinteger[Any]], int]:
    """Number the connected components of a mask.

    Args:
        mask: of any shape in three dimensions, such as a single slice or a line.

    Returns:
        an array of the mask's shape with the number of each voxel's component, from 1, and 0 elsewhere; and their
        number.
    """
    # cc3d 4.1 reserves one label for 8 voxels. That is too few in a box with an odd side, which can hold one component
    # in each of its blocks of 2 x 2 x 2 voxels, cut or whole; then it fails with "maximum length exception".
    even = np.pad(mask, [(0, size % 2) for size in mask.shape])
    labels, count = cc3d.connected_components(even, connectivity=26, return_N=True)
    return labels[tuple(slice(size) for size in mask.shape)], int(count)


def largest_component(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the largest connected component of a mask; an empty mask unchanged."""
    box = Box.around(mask)
    if box is None:
        return mask
    labels, _ = label_components(mask[box.slices])
    result = np.zeros_like(mask)
    result[box.slices] = labels == 1 + np.bincount(labels.ravel())[1:].argmax()
    return result
