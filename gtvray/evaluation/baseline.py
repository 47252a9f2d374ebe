"""Mean-position baseline, which every model must exceed: it uses the training masks and never the image."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gtvray.errors import InputError
from gtvray.geometry import Box, Volume, resample_to_grid
from gtvray.io import as_labels

_THRESHOLD_SHARES = np.linspace(0.05, 0.95, 10)
_MAX_CASES_FOR_THRESHOLD = 40

Spacing = tuple[float, float, float]


@dataclass(frozen=True)
class MeanPositionBaseline:
    """Mean position of the training masks, relative to the centre of their grids.

    Attributes:
        occupancy: share of the training masks that cover each voxel, 0 to 1, on a common RAS grid whose origin is
            the centre of a case's grid.
        threshold: minimum occupancy of predicted voxels, chosen for the highest mean Dice on the training masks.
    """

    occupancy: Volume
    threshold: float

    @classmethod
    def fit(cls, labels: Iterable[Volume], spacing_mm: Spacing = (3.0, 3.0, 3.0)) -> MeanPositionBaseline:
        """Average the training masks.

        Args:
            labels: masks of any orientation, oblique included; nonzero voxels belong to the mask. They are read one
                by one, so a generator keeps a single label in memory.
            spacing_mm: spacing of the common grid.

        Raises:
            InputError: every label is empty.
        """
        crops = [_centred_crop(label) for label in labels]
        masks = [crop for crop in crops if crop is not None]
        if not masks:
            raise InputError("no training mask to compute a mean position from", found=f"{len(crops)} empty labels")
        affine, shape = _common_grid(masks, spacing_mm)
        total = np.zeros(shape, dtype=np.float32)
        kept: list[npt.NDArray[np.bool_]] = []
        keep_every = -(-len(masks) // _MAX_CASES_FOR_THRESHOLD)
        for index, mask in enumerate(masks):
            resampled = resample_to_grid(mask, affine, shape, order=0, fill=0).array
            total += resampled
            if index % keep_every == 0:
                kept.append(resampled.astype(bool))
        occupancy = Volume(total / len(crops), affine)
        return cls(occupancy, _best_threshold(occupancy.array, kept))

    def predict(self, grid: Volume) -> Volume:
        """Return the mean mask, uint8, on the grid of a case; the case's image is not read."""
        mask = self.occupancy.with_array((self.occupancy.array >= self.threshold).astype(np.uint8))
        resampled = resample_to_grid(mask, _centred(grid).affine, grid.shape, order=0, fill=0)
        return grid.with_array(resampled.array)


def _centred(volume: Volume) -> Volume:
    """Translate a volume so that the centre of its grid is the origin."""
    affine = volume.affine.copy()
    affine[:3, 3] -= volume.center_mm()
    return Volume(volume.array, affine)


def _centred_crop(label: Volume) -> Volume | None:
    """Crop a label to its mask, uint8, positioned relative to the centre of the full grid; None if it is empty."""
    mask = as_labels(label, "training mask").volume.array != 0
    box = Box.around(mask)
    return None if box is None else _centred(label.with_array(mask.astype(np.uint8))).cropped(box)


def _common_grid(masks: list[Volume], spacing_mm: Spacing) -> tuple[npt.NDArray[np.float64], tuple[int, int, int]]:
    """Affine and shape of the RAS grid that covers the voxels of every mask."""
    corners_mm = np.concatenate([_corners_mm(mask) for mask in masks])
    low_mm, high_mm = corners_mm.min(axis=0), corners_mm.max(axis=0)
    size = np.ceil((high_mm - low_mm) / np.asarray(spacing_mm) - 1e-6).astype(int)
    affine = np.diag([*spacing_mm, 1.0])
    # Edges coincide with voxel edges: with centres there, every nearest-neighbour lookup would be a tie.
    affine[:3, 3] = low_mm + np.asarray(spacing_mm) / 2
    return affine, (int(size[0]), int(size[1]), int(size[2]))


def _corners_mm(volume: Volume) -> npt.NDArray[np.float64]:
    corners = np.array(np.meshgrid(*[(-0.5, n - 0.5) for n in volume.shape])).reshape(3, -1)
    corners_mm: npt.NDArray[np.float64] = (volume.affine[:3, :3] @ corners + volume.affine[:3, 3:]).T
    return corners_mm


def _best_threshold(occupancy: npt.NDArray[np.float32], masks: list[npt.NDArray[np.bool_]]) -> float:
    sizes = np.array([np.count_nonzero(mask) for mask in masks])
    best_dice, best = -1.0, 0.0
    for level in _THRESHOLD_SHARES * float(occupancy.max()):
        predicted = occupancy >= level
        overlaps = np.array([np.count_nonzero(mask & predicted) for mask in masks])
        mean_dice = float(np.mean(2 * overlaps / (sizes + np.count_nonzero(predicted))))
        if mean_dice > best_dice:
            best_dice, best = mean_dice, float(level)
    return best
