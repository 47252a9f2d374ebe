"""Scores stratified by tumour volume and by voxel spacing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from gtvray.evaluation.metrics import CaseScore

# The mean of fewer cases is not informative.
_MIN_CASES = 3
_VOLUME_STRATA = 3
TUMOUR_VOLUME, VOXEL_SPACING = "tumour volume", "voxel spacing"


@dataclass(frozen=True)
class Stratum:
    """Mean scores of the cases in one range of volumes or spacings.

    Attributes:
        by: `TUMOUR_VOLUME`, or `VOXEL_SPACING` along the coarsest axis.
        low, high: range of the values, in `unit`.
        unit: "ml" or "mm".
        cases: number of cases.
        mean_dsc, mean_hd95_mm: means over them.
        missed: number of missed cases.
    """

    by: str
    low: float
    high: float
    unit: str
    cases: int
    mean_dsc: float
    mean_hd95_mm: float
    missed: int


def stratify(scores: Sequence[CaseScore]) -> list[Stratum]:
    """Group the cases into thirds by reference volume, and by their coarsest spacing rounded to half a millimetre.

    Strata of fewer than three cases are omitted, and so is a grouping of which a single stratum is left.
    """
    by_volume = sorted(scores, key=lambda score: score.volume_reference_ml)
    edges = np.linspace(0, len(by_volume), _VOLUME_STRATA + 1).round().astype(int)
    thirds = [by_volume[start:stop] for start, stop in pairwise(edges)]
    spacings = sorted({round(2 * max(score.spacing_mm)) / 2 for score in scores})
    groups = [[score for score in scores if round(2 * max(score.spacing_mm)) / 2 == value] for value in spacings]
    return [
        *_strata(TUMOUR_VOLUME, "ml", thirds, [[score.volume_reference_ml for score in group] for group in thirds]),
        *_strata(VOXEL_SPACING, "mm", groups, [[max(score.spacing_mm) for score in group] for group in groups]),
    ]


def _strata(
    by: str, unit: str, groups: Sequence[Sequence[CaseScore]], values: Sequence[Sequence[float]]
) -> list[Stratum]:
    strata = [
        Stratum(
            by=by,
            low=min(of_group),
            high=max(of_group),
            unit=unit,
            cases=len(group),
            mean_dsc=float(np.mean([score.dsc for score in group])),
            mean_hd95_mm=float(np.mean([score.hd95_mm for score in group])),
            missed=sum(score.missed for score in group),
        )
        for group, of_group in zip(groups, values, strict=True)
        if len(group) >= _MIN_CASES
    ]
    return strata if len(strata) > 1 else []
