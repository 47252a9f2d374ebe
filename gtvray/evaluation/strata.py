"""Where a model is weak: scores by tumour volume and by voxel spacing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from gtvray.evaluation.metrics import CaseScore

# Fewer than this many cases a stratum say nothing apart.
_FEWEST_A_STRATUM = 3
_VOLUME_STRATA = 3
TUMOUR_VOLUME, VOXEL_SPACING = "tumour volume", "voxel spacing"


@dataclass(frozen=True)
class Stratum:
    """Cases that are alike in one respect.

    Attributes:
        by: `TUMOUR_VOLUME`, or `VOXEL_SPACING` along the coarsest axis.
        low, high: range of the values met, in `unit`.
        unit: "ml" or "mm".
        cases: how many.
        mean_dsc, mean_hd95_mm: over them.
        missed: cases of which nothing, or in which something that is not there, was marked.
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
    """Thirds of the cases by reference volume, and groups by the coarsest spacing to half a millimetre.

    Strata of fewer than three cases are left out, and so is a division that leaves one stratum only.
    """
    by_volume = sorted(scores, key=lambda score: score.volume_reference_ml)
    edges = np.linspace(0, len(by_volume), _VOLUME_STRATA + 1).round().astype(int)
    thirds = [by_volume[start:stop] for start, stop in pairwise(edges)]
    spacings = sorted({round(2 * max(score.spacing_mm)) / 2 for score in scores})
    alike = [[score for score in scores if round(2 * max(score.spacing_mm)) / 2 == value] for value in spacings]
    return [
        *_strata(TUMOUR_VOLUME, "ml", thirds, [[score.volume_reference_ml for score in part] for part in thirds]),
        *_strata(VOXEL_SPACING, "mm", alike, [[max(score.spacing_mm) for score in part] for part in alike]),
    ]


def _strata(
    by: str, unit: str, parts: Sequence[Sequence[CaseScore]], values: Sequence[Sequence[float]]
) -> list[Stratum]:
    strata = [
        Stratum(
            by=by,
            low=min(of_part),
            high=max(of_part),
            unit=unit,
            cases=len(part),
            mean_dsc=float(np.mean([score.dsc for score in part])),
            mean_hd95_mm=float(np.mean([score.hd95_mm for score in part])),
            missed=sum(score.missed for score in part),
        )
        for part, of_part in zip(parts, values, strict=True)
        if len(part) >= _FEWEST_A_STRATUM
    ]
    return strata if len(strata) > 1 else []
