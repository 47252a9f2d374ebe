"""What the header of a volume file says about its voxels."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class VolumeHeader:
    """The header of a volume file, checked as if the volume were read.

    Attributes:
        shape: (i, j, k).
        dtype: of the stored voxels.
        affine: from voxel indices to RAS millimetres.
        is_scaled: whether reading applies a linear scaling, and so returns float32.
        slope: of that scaling, which is the difference of two consecutive integers after reading.
        data_file: the detached file that has the voxels; None if they follow the header.
    """

    shape: tuple[int, int, int]
    dtype: np.dtype[Any]
    affine: NDArray[np.float64]
    is_scaled: bool
    slope: float = 1.0
    data_file: Path | None = None
