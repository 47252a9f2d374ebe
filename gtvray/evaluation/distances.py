"""Distances between the surfaces of two masks, measured once per case and read by HD95, ASSD and NSD."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gtvray.evaluation.surface import Mask, Spacing, crop_to_union, distance_mm, surface_voxels, surfel_areas_mm2

Distances = npt.NDArray[np.float32]
# Distances are float32: without slack, one equal to the tolerance would be counted or not by its rounding.
_SLACK = 1 + 1e-6


@dataclass(frozen=True)
class VoxelDistances:
    """Distances in mm from every surface voxel of one mask to the nearest one of the other.

    Attributes:
        to_reference_mm: one for each surface voxel of the prediction.
        to_prediction_mm: one for each surface voxel of the reference.
    """

    to_reference_mm: Distances
    to_prediction_mm: Distances

    @classmethod
    def between(cls, reference: Mask, prediction: Mask, spacing_mm: Spacing) -> VoxelDistances:
        """Measure; neither mask (i, j, k) may be empty."""
        first, second = (surface_voxels(mask) for mask in crop_to_union(reference, prediction))
        return cls(distance_mm(first, spacing_mm)[second], distance_mm(second, spacing_mm)[first])

    @property
    def hd95_mm(self) -> float:
        """The larger of the two directed 95th percentiles."""
        return float(max(np.percentile(self.to_reference_mm, 95), np.percentile(self.to_prediction_mm, 95)))

    @property
    def assd_mm(self) -> float:
        """The mean over the surface voxels of both masks."""
        total = self.to_reference_mm.sum(dtype=np.float64) + self.to_prediction_mm.sum(dtype=np.float64)
        return float(total / (self.to_reference_mm.size + self.to_prediction_mm.size))


@dataclass(frozen=True)
class SurfelDistances:
    """The surfels of both masks: area, and distance in mm to the nearest surfel of the other mask.

    Attributes:
        areas_mm2: of the reference's surfels, then of the prediction's.
        distances_mm: in the same order.
    """

    areas_mm2: npt.NDArray[np.float64]
    distances_mm: Distances

    @classmethod
    def between(cls, reference: Mask, prediction: Mask, spacing_mm: Spacing) -> SurfelDistances:
        """Measure; neither mask (i, j, k) may be empty."""
        first, second = (surfel_areas_mm2(mask, spacing_mm) for mask in crop_to_union(reference, prediction))
        here, there = first > 0, second > 0
        return cls(
            np.concatenate([first[here], second[there]]),
            np.concatenate([distance_mm(there, spacing_mm)[here], distance_mm(here, spacing_mm)[there]]),
        )

    def share_within(self, tolerance_mm: float) -> float:
        """The share of both surfaces' area that lies within a distance of the other one: NSD."""
        close = self.areas_mm2[self.distances_mm <= tolerance_mm * _SLACK].sum()
        return float(close / self.areas_mm2.sum())
