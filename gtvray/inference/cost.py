"""What the segmentation of a scan will cost, from its header alone: voxels, patches and memory. Torch-free."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from gtvray.config import InferenceConfig, PreprocessingConfig
from gtvray.geometry import is_sheared, orthogonal_grid, spacing_from_affine
from gtvray.inference.aggregate import BLOCK
from gtvray.inference.schedule import PatchGrid
from gtvray.io import VolumeHeader

# A grid is placed about the body, so that the one that covers the scan may be a voxel longer at either end.
_PLACEMENT = 2
# Slabs of resampling, and what every process allocates beside the arrays of a scan.
_CONSTANT_BYTES = 16 << 20
_SLAB_BYTES = 48 << 20
_MARGIN = 1.1


class CostSettings(Protocol):
    """The settings of a bundle on which the cost of a scan depends."""

    @property
    def preprocessing(self) -> PreprocessingConfig:
        """As of the bundle."""

    @property
    def inference(self) -> InferenceConfig:
        """As of the bundle."""

    @property
    def patch_ijk(self) -> tuple[int, int, int]:
        """As of the bundle."""


@dataclass(frozen=True)
class ScanCost:
    """Upper bounds of what a scan takes.

    Attributes:
        source_voxels: of the file.
        prepared_ijk: shape of the prepared grid that covers the full scan.
        patches: that cover it; those of a locator are not counted.
        peak_bytes: memory of the process beyond what it holds without a scan.
    """

    source_voxels: int
    prepared_ijk: tuple[int, int, int]
    patches: int
    peak_bytes: int

    @property
    def prepared_voxels(self) -> int:
        """Voxels of the prepared grid."""
        return math.prod(self.prepared_ijk)


def estimate_cost(header: VolumeHeader, bundle: CostSettings) -> ScanCost:
    """Estimate what it costs to segment a scan with a bundle.

    Args:
        header: of the scan's file.
        bundle: its settings; a locator of coarser spacing adds nothing.
    """
    shape = header.shape
    if is_sheared(header.affine):
        shape = orthogonal_grid(header.affine, shape)[1]
    spacing_mm = spacing_from_affine(header.affine)
    prepared = _resampled(shape, spacing_mm, bundle.preprocessing.spacing_mm)
    inference, patch_ijk = bundle.inference, bundle.patch_ijk
    largest = [n + _PLACEMENT for n in prepared]
    grid = PatchGrid.covering(
        (largest[0], largest[1], largest[2]), patch_ijk, inference.overlap, inference.sliding_window
    )
    sides = [max(n, side) for n, side in zip(largest, patch_ijk, strict=True)]
    frame, blocks = math.prod(sides), math.prod(BLOCK * -(-side // BLOCK) for side in sides)
    # Sums and weights live where patches are still to come: patches advance along the first axis.
    live = min(1.0, 2 * patch_ijk[0] / sides[0])
    mirrored = bundle.preprocessing.mirrored
    # The logits of patches that a later stage may use again, and the weights of which patches are required.
    kept = len(grid) * math.prod(patch_ijk) * 4 + 28 * frame if inference.mode == "localised" else 0
    phases = (
        _preparing_bytes(header, shape, spacing_mm, frame, mirrored=mirrored),
        # HU twice (prepared and padded), a mask of the body, probabilities, and sums.
        (5 + 4 * mirrored) * frame + (4 + 8 * live) * blocks + kept,
        # HU, probabilities twice, and on the scan's grid the mask and copies of it to be encoded.
        (3 + 2 * mirrored) * frame + 8 * blocks + (12 if inference.keep_largest else 4) * math.prod(header.shape),
    )
    source_voxels = math.prod(header.shape)
    slabs = min(_SLAB_BYTES, 32 * max(source_voxels, frame))
    return ScanCost(source_voxels, prepared, len(grid), int(_MARGIN * max(phases)) + slabs + _CONSTANT_BYTES)


def _resampled(shape: Sequence[int], spacing_mm: Sequence[float], new_mm: Sequence[float]) -> tuple[int, int, int]:
    i, j, k = (max(1, math.ceil(n * old / new - 1e-3)) for n, old, new in zip(shape, spacing_mm, new_mm, strict=True))
    return i, j, k


def _preparing_bytes(
    header: VolumeHeader, upright: tuple[int, int, int], spacing_mm: Sequence[float], frame: int, *, mirrored: bool
) -> int:
    """Memory while the file is decoded and the scan is prepared."""
    dtype, voxels = header.dtype, math.prod(header.shape)
    becomes_float = header.is_scaled or dtype.kind == "f"
    # The voxels as stored; where they are converted, the copy and a mask of its finite values beside them.
    copied = 4 if becomes_float and dtype != np.dtype(np.float32) else 0
    if not becomes_float and not dtype.isnative:
        copied = dtype.itemsize
    source = voxels * (dtype.itemsize + copied + becomes_float)
    if upright != header.shape:
        source += math.prod(upright) * 16
    # The body is searched on every voxel of a coarse scan, with labels and their counts.
    coarse = math.prod(-(-n // max(1, round(4.0 / step))) for n, step in zip(upright, spacing_mm, strict=True))
    return source + max(24 * coarse, (4 + 12 * mirrored) * frame)
