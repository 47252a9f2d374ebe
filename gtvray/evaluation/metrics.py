"""Scores of a predicted mask against its reference, on the original full grid.

HD95 is the larger of the two directed 95th percentiles between surface voxels, in mm. Empty masks: both empty scores
DSC 1, NSD 1 and distances of 0; one empty scores DSC 0, NSD 0 and the grid's diagonal as HD95 and ASSD, and counts as a
missed case. No score is ever NaN, so that no failure drops out of a mean.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gtvray.errors import GeometryError, InputError
from gtvray.evaluation.contours import added_path_length_mm, count_tumours
from gtvray.evaluation.distances import SurfelDistances, VoxelDistances
from gtvray.evaluation.surface import Mask, Spacing
from gtvray.geometry import Box, Volume, is_sheared
from gtvray.io import as_labels

NSD_TOLERANCES_MM = (1.0, 2.0, 5.0)
# Numeric scores of a case and their labels.
METRICS = {
    "dsc": "DSC",
    "hd95_mm": "HD95 (mm)",
    "assd_mm": "ASSD (mm)",
    "nsd_1mm": "NSD at 1 mm",
    "nsd_2mm": "NSD at 2 mm",
    "nsd_5mm": "NSD at 5 mm",
    "volume_error_ml": "volume error (ml)",
    "absolute_volume_error_ml": "absolute volume error (ml)",
    "added_path_length_mm": "path to add (mm)",
}


@dataclass(frozen=True)
class CaseScore:
    """Scores of one case.

    Attributes:
        case_id: the case.
        spacing_mm: spacing of its grid along i, j, k.
        dsc: Dice similarity coefficient.
        hd95_mm, assd_mm: 95 % Hausdorff distance and average symmetric surface distance between surface voxels.
        nsd_1mm, nsd_2mm, nsd_5mm: normalised surface Dice at these tolerances.
        nsd_tolerance_mm: the finest of these tolerances that the case's spacing resolves.
        volume_reference_ml, volume_prediction_ml: volumes of the masks.
        added_path_length_mm: length of contour to be redrawn.
        tumours, tumours_missed, tumours_false: components of the reference, those without any predicted voxel, and
            components of the prediction without any reference voxel.
        missed: whether exactly one of the two masks is empty.
    """

    case_id: str
    spacing_mm: Spacing
    dsc: float
    hd95_mm: float
    assd_mm: float
    nsd_1mm: float
    nsd_2mm: float
    nsd_5mm: float
    nsd_tolerance_mm: float
    volume_reference_ml: float
    volume_prediction_ml: float
    added_path_length_mm: float
    tumours: int
    tumours_missed: int
    tumours_false: int
    missed: bool

    @property
    def nsd(self) -> float:
        """NSD at `nsd_tolerance_mm`."""
        return float(getattr(self, f"nsd_{self.nsd_tolerance_mm:g}mm"))

    @property
    def volume_error_ml(self) -> float:
        """Predicted minus reference volume."""
        return self.volume_prediction_ml - self.volume_reference_ml

    @property
    def absolute_volume_error_ml(self) -> float:
        """Magnitude of the volume error."""
        return abs(self.volume_error_ml)


def score_case(case_id: str, reference: Volume, prediction: Volume) -> CaseScore:
    """Score a predicted mask against its reference; nonzero voxels belong to the mask.

    Raises:
        DataError: the values of a mask are not labels.
        GeometryError: the masks are on different grids, or on a sheared grid.
    """
    reference, prediction = (as_labels(mask, case_id).volume for mask in (reference, prediction))
    if not reference.same_grid(prediction):
        raise GeometryError(
            "reference and prediction do not share a grid",
            where=case_id,
            expected=_describe(reference),
            found=_describe(prediction),
            do="score the mask on the grid of the scan it was predicted from",
        )
    if is_sheared(reference.affine):
        raise GeometryError(
            "distances cannot be measured on a sheared grid", where=case_id, do="correct the gantry tilt first"
        )
    box = Box.around((reference.array != 0) | (prediction.array != 0))
    # Everything is computed on the box around both masks; only the diagonal needs the full grid.
    masks = [volume.cropped(box) if box else volume for volume in (reference, prediction)]
    first, second = (mask.array != 0 for mask in masks)
    spacing_mm = reference.spacing_mm
    hd95, assd, nsds = _surface_scores(first, second, spacing_mm, reference.shape)
    tumours, tumours_missed, tumours_false = count_tumours(first, second)
    return CaseScore(
        case_id=case_id,
        spacing_mm=spacing_mm,
        dsc=dice(first, second),
        hd95_mm=hd95,
        assd_mm=assd,
        nsd_1mm=nsds[0],
        nsd_2mm=nsds[1],
        nsd_5mm=nsds[2],
        nsd_tolerance_mm=nsd_tolerance_mm(spacing_mm),
        volume_reference_ml=int(first.sum()) * reference.voxel_volume_ml,
        volume_prediction_ml=int(second.sum()) * prediction.voxel_volume_ml,
        added_path_length_mm=added_path_length_mm(*masks),
        tumours=tumours,
        tumours_missed=tumours_missed,
        tumours_false=tumours_false,
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
        prediction: bool mask on the same grid.
        spacing_mm: voxel spacing along i, j, k.
    """
    _check_pair(reference, prediction, spacing_mm)
    if reference.any() and prediction.any():
        return VoxelDistances.between(reference, prediction, spacing_mm).hd95_mm
    return _distance_without_surface_mm(reference, prediction, spacing_mm, reference.shape)


def assd_mm(reference: Mask, prediction: Mask, spacing_mm: Spacing) -> float:
    """Average symmetric surface distance in mm: the mean over the surface voxels of both masks."""
    _check_pair(reference, prediction, spacing_mm)
    if reference.any() and prediction.any():
        return VoxelDistances.between(reference, prediction, spacing_mm).assd_mm
    return _distance_without_surface_mm(reference, prediction, spacing_mm, reference.shape)


def nsd(reference: Mask, prediction: Mask, spacing_mm: Spacing, tolerance_mm: float) -> float:
    """Normalised surface Dice, 0 to 1: the share of both surfaces' area within `tolerance_mm` of the other surface.

    Surfaces and areas follow Nikolov et al. 2021 (doi:10.2196/26151).
    """
    _check_pair(reference, prediction, spacing_mm)
    if not (np.isfinite(tolerance_mm) and tolerance_mm >= 0):
        raise InputError("NSD tolerance is not a distance", expected="zero or more mm", found=tolerance_mm)
    if reference.any() and prediction.any():
        return SurfelDistances.between(reference, prediction, spacing_mm).share_within(tolerance_mm)
    return float(reference.any() == prediction.any())


def nsd_tolerance_mm(spacing_mm: Spacing) -> float:
    """The finest of `NSD_TOLERANCES_MM` that a grid resolves; the widest if it resolves none."""
    return next((each for each in NSD_TOLERANCES_MM if is_resolved(each, spacing_mm)), NSD_TOLERANCES_MM[-1])


def is_resolved(tolerance_mm: float, spacing_mm: Spacing) -> bool:
    """Whether a tolerance exceeds half a voxel along every axis.

    A contour on voxels lies up to half a voxel off the true surface, so that 1 mm is too fine for slices of 3 mm, and
    2 mm for voxels of 4 mm (OpenKBP).
    """
    return tolerance_mm > max(spacing_mm) / 2


def _surface_scores(
    reference: Mask, prediction: Mask, spacing_mm: Spacing, grid: tuple[int, ...]
) -> tuple[float, float, list[float]]:
    """HD95, ASSD and NSDs of masks cropped from a grid of shape `grid`, from one distance computation."""
    if not (reference.any() and prediction.any()):
        distance = _distance_without_surface_mm(reference, prediction, spacing_mm, grid)
        return distance, distance, [float(reference.any() == prediction.any())] * len(NSD_TOLERANCES_MM)
    voxels = VoxelDistances.between(reference, prediction, spacing_mm)
    surfels = SurfelDistances.between(reference, prediction, spacing_mm)
    return voxels.hd95_mm, voxels.assd_mm, [surfels.share_within(tolerance) for tolerance in NSD_TOLERANCES_MM]


def _distance_without_surface_mm(
    reference: Mask, prediction: Mask, spacing_mm: Spacing, grid: tuple[int, ...]
) -> float:
    """Distance that is scored if a mask is empty: 0 if both are, else the grid's diagonal."""
    if reference.any() == prediction.any():
        return 0.0
    return float(np.linalg.norm(np.multiply(grid, spacing_mm)))


def _check_pair(reference: Mask, prediction: Mask, spacing_mm: Spacing = (1.0, 1.0, 1.0)) -> None:
    for mask in (reference, prediction):
        if mask.dtype != np.bool_ or mask.ndim != 3:
            raise InputError(
                "a mask has the wrong type", expected="a 3-D bool array", found=f"{mask.ndim}-D {mask.dtype}"
            )
    if reference.shape != prediction.shape:
        raise GeometryError("masks differ in shape", expected=reference.shape, found=prediction.shape)
    if len(spacing_mm) != 3 or not all(np.isfinite(value) and value > 0 for value in spacing_mm):
        raise GeometryError("spacing is not usable", expected="three positive numbers in mm", found=spacing_mm)


def _describe(volume: Volume) -> str:
    spacing = "x".join(f"{value:.4g}" for value in volume.spacing_mm)
    return f"{volume.shape} at {spacing} mm, {volume.orientation}, centre {volume.center_mm().round(2).tolist()} mm"
