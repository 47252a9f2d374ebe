"""Where patches lie, and how much a voxel's answer counts by its place in the patch."""

from __future__ import annotations

from itertools import product

import numpy as np
from numpy.typing import NDArray


def patch_starts(
    shape: tuple[int, int, int], patch_ijk: tuple[int, int, int], overlap: float
) -> list[tuple[int, int, int]]:
    """First voxels of the patches that cover a grid evenly.

    Neighbours share at least `overlap` of a patch; an axis shorter than the patch has one start, 0.
    """
    axes = []
    for size, patch in zip(shape, patch_ijk, strict=True):
        room = max(0, size - patch)
        step = max(1, int(patch * (1 - overlap)))
        count = -(-room // step) + 1
        axes.append([round(place) for place in np.linspace(0, room, count)])
    return [(i, j, k) for i, j, k in product(*axes)]


def gaussian_weights(patch_ijk: tuple[int, int, int]) -> NDArray[np.float32]:
    """Weights (i, j, k) falling from the centre, sigma an eighth of the patch, as nnU-Net has them; never zero."""
    falls = []
    for size in patch_ijk:
        offset = np.arange(size) - (size - 1) / 2
        falls.append(np.exp(-0.5 * (offset / (size / 8)) ** 2))
    weights = falls[0][:, None, None] * falls[1][None, :, None] * falls[2][None, None, :]
    return np.asarray(np.maximum(weights / weights.max(), 1e-3), dtype=np.float32)
