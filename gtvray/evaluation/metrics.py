"""Overlap and distance between a reference and a predicted mask, on the original full grid.

HD95 is the larger of the two directed 95th percentiles between surface voxels, in mm. Where a mask is empty: both
empty scores DSC 1, NSD 1, HD95 0; one empty scores DSC 0, NSD 0 and the grid's diagonal as HD95, and is a miss.
No score is ever NaN, so no failure can drop out of a mean.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gtvray.errors import GeometryError, InputError
from gtvray.evaluation.surface import Mask, Spacing, crop_to_union, distance_mm, surface_voxels, surfel_areas_mm2
from gtvray.geometry import Volume, is_sheared

# SegRap scores GTV at 1 mm on 3 mm slices. On voxels of 4 mm and more (OpenKBP) 1 mm only asks for identity.
_FINE_TOLERANCE_MM, _COARSE_TOLERANCE_MM = 1.0, 5.0
_FINE_SPACING_MM = 3.5


@dataclass(frozen=True)
class CaseScore:
    """Scores of one case; `missed` says that exactly one of the two masks is empty."""

    case_id: str
    dsc: float
    hd95_mm: float
    nsd: float
    nsd_tolerance_mm: float
    volume_reference_ml: float
    volume_prediction_ml: float
    missed: bool


def score_case(case_id: str, reference: Volume, prediction: Volume) -> CaseScore:
    """Score a predicted mask against its reference; every voxel that is not zero belongs to the mask.

    Raises:
        GeometryError: the masks lie on different grids, or on one whose axes are not at right angles.
    """
    if not reference.same_grid(prediction):
        raise GeometryError(
            "reference and prediction do not share a grid",
            where=case_id,
            expected=_describe(reference),
            found=_describe(prediction),
            do="score the mask on the grid of the case it was predicted for",
        )
    if is_sheared(reference.affine):
        raise GeometryError(
            "distances cannot be measured on a sheared grid", where=case_id, do="correct the gantry tilt first"
        )
    first, second = reference.array != 0, prediction.array != 0
    spacing_mm = reference.spacing_mm
    tolerance_mm = nsd_tolerance_mm(spacing_mm)
    return CaseScore(
        case_id=case_id,
        dsc=dice(first, second),
        hd95_mm=hd95_mm(first, second, spacing_mm),
        nsd=nsd(first, second, spacing_mm, tolerance_mm),
        nsd_tolerance_mm=tolerance_mm,
        volume_reference_ml=int(first.sum()) * reference.voxel_volume_ml,
        volume_prediction_ml=int(second.sum()) * prediction.voxel_volume_ml,
        missed=bool(first.any() != second.any()),
    )


def dice(reference: Mask, prediction: Mask) -> float:
    """Dice similarity coefficient of two bool masks (i, j, k), 0 to 1."""
    _check_pair(reference, prediction)
    total = int(np.count_nonzero(reference)) + int(np.count_nonzero(prediction))
    return 2 * int(np.count_nonzero(reference & prediction)) / total if total else 1.0


def hd95_mm(reference: Mask, prediction: Mask, spacing_mm: Spacing) -> float:
    """95 % Hausdorff distance in mm: the larger of the two directed 95th percentiles between surface voxels.

    Args:
        reference: bool mask (i, j, k) on the original full grid.
        prediction: the same for the prediction.
        spacing_mm: voxel spacing along i, j, k.
    """
    _check_pair(reference, prediction, spacing_mm)
    has_reference, has_prediction = bool(reference.any()), bool(prediction.any())
    if not (has_reference or has_prediction):
        return 0.0
    if not (has_reference and has_prediction):
        return float(np.linalg.norm(np.multiply(reference.shape, spacing_mm)))
    first, second = (surface_voxels(mask) for mask in crop_to_union(reference, prediction))
    to_first, to_second = distance_mm(first, spacing_mm)[second], distance_mm(second, spacing_mm)[first]
    return float(max(np.percentile(to_first, 95), np.percentile(to_second, 95)))


def nsd(reference: Mask, prediction: Mask, spacing_mm: Spacing, tolerance_mm: float) -> float:
    """Normalised surface Dice, 0 to 1: the share of both surfaces' area within `tolerance_mm` of the other one.

    Surfaces and areas are those of Nikolov et al. 2021 (doi:10.2196/26151).
    """
    _check_pair(reference, prediction, spacing_mm)
    if not (np.isfinite(tolerance_mm) and tolerance_mm >= 0):
        raise InputError("NSD tolerance must be zero or more millimetres", found=tolerance_mm)
    has_reference, has_prediction = bool(reference.any()), bool(prediction.any())
    if not (has_reference and has_prediction):
        return float(has_reference == has_prediction)
    areas = [surfel_areas_mm2(mask, spacing_mm) for mask in crop_to_union(reference, prediction)]
    total = sum(float(area.sum()) for area in areas)
    close = sum(
        _area_within(area, other > 0, spacing_mm, tolerance_mm) for area, other in zip(areas, areas[::-1], strict=True)
    )
    return close / total


def nsd_tolerance_mm(spacing_mm: Spacing) -> float:
    """The tolerance NSD is reported at: 1 mm, or 5 mm where voxels are too coarse for 1 mm to mean anything."""
    return _FINE_TOLERANCE_MM if max(spacing_mm) <= _FINE_SPACING_MM else _COARSE_TOLERANCE_MM


def _area_within(area: npt.NDArray[np.float64], other: Mask, spacing_mm: Spacing, tolerance_mm: float) -> float:
    # Distances are float32: without slack, one equal to the tolerance would be counted or not by its rounding.
    near = distance_mm(other, spacing_mm) <= tolerance_mm * (1 + 1e-6)
    return float(area[near].sum())


def _check_pair(reference: Mask, prediction: Mask, spacing_mm: Spacing = (1.0, 1.0, 1.0)) -> None:
    for mask in (reference, prediction):
        if mask.dtype != np.bool_ or mask.ndim != 3:
            raise InputError("a mask is a 3-D bool array", found=f"{mask.ndim}-D {mask.dtype}")
    if reference.shape != prediction.shape:
        raise GeometryError("masks differ in shape", expected=reference.shape, found=prediction.shape)
    if len(spacing_mm) != 3 or not all(np.isfinite(value) and value > 0 for value in spacing_mm):
        raise GeometryError("spacing must be three positive numbers in mm", found=spacing_mm)


def _describe(volume: Volume) -> str:
    spacing = "x".join(f"{value:.4g}" for value in volume.spacing_mm)
    return f"{volume.shape} at {spacing} mm, {volume.orientation}, centre {volume.center_mm().round(2).tolist()} mm"
