"""Distances between the surfaces of two masks, computed once per case for HD95, ASSD and NSD."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gtvray.evaluation.surface import Mask, Spacing, crop_to_union, distance_mm, surface_voxels, surfel_areas_mm2

Distances = npt.NDArray[np.float32]
# Distances are float32: without slack, rounding would decide on one that equals the tolerance.
_SLACK = 1 + 1e-6


@dataclass(frozen=True)
class VoxelDistances:
    """Distances in mm from every surface voxel of one mask to the nearest surface voxel of the other.

    Attributes:
        to_reference_mm: one for each surface voxel of the prediction.
        to_prediction_mm: one for each surface voxel of the reference.
    """

    to_reference_mm: Distances
    to_prediction_mm: Distances

    @classmethod
    def between(cls, reference: Mask, prediction: Mask, spacing_mm: Spacing) -> VoxelDistances:
        """Compute the distances of two masks (i, j, k), neither of them empty."""
        first, second = (surface_voxels(mask) for mask in crop_to_union(reference, prediction))
        return cls(distance_mm(first, spacing_mm)[second], distance_mm(second, spacing_mm)[first])

    @property
    def hd95_mm(self) -> float:
        """HD95 in mm: the larger of the two directed 95th percentiles."""
        return float(max(np.percentile(self.to_reference_mm, 95), np.percentile(self.to_prediction_mm, 95)))

    @property
    def assd_mm(self) -> float:
        """ASSD in mm: the mean over the surface voxels of both masks."""
        total = self.to_reference_mm.sum(dtype=np.float64) + self.to_prediction_mm.sum(dtype=np.float64)
        return float(total / (self.to_reference_mm.size + self.to_prediction_mm.size))


@dataclass(frozen=True)
class SurfelDistances:
    """Surfels of both masks: area, and distance in mm to the nearest surfel of the other mask.

    Attributes:
        areas_mm2: of the reference's surfels, then of the prediction's.
        distances_mm: in the same order.
    """

    areas_mm2: npt.NDArray[np.float64]
    distances_mm: Distances

    @classmethod
    def between(cls, reference: Mask, prediction: Mask, spacing_mm: Spacing) -> SurfelDistances:
        """Compute the surfels of two masks (i, j, k), neither of them empty."""
        first, second = (surfel_areas_mm2(mask, spacing_mm) for mask in crop_to_union(reference, prediction))
        in_first, in_second = first > 0, second > 0
        return cls(
            np.concatenate([first[in_first], second[in_second]]),
            np.concatenate(
                [distance_mm(in_second, spacing_mm)[in_first], distance_mm(in_first, spacing_mm)[in_second]]
            ),
        )

    def share_within(self, tolerance_mm: float) -> float:
        """NSD: the share of both surfaces' area that lies within a distance of the other surface."""
        close = self.areas_mm2[self.distances_mm <= tolerance_mm * _SLACK].sum()
        return float(close / self.areas_mm2.sum())
