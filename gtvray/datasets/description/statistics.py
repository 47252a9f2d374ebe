"""Statistics of a dataset from one reading of its cases: grids, intensities and tumours."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from gtvray.datasets.checks.survey import HIGHEST_HU, LOWEST_HU, Counts, Facts, Survey

ROWS = ("min", "median", "max")
PERCENTILES = (0.5, 1, 5, 25, 50, 75, 95, 99, 99.5)
# Larger than the rotations that rounding in a header causes.
_OBLIQUE_DEG = 0.1


def dataset_statistics(surveys: Sequence[Survey]) -> dict[str, Any]:
    """Compute the statistics of a dataset, as plain values for JSON.

    Unreadable cases are counted and otherwise omitted. Spacing and size are along the files' own axes, element by
    element, so that a row is in general not a single case.
    """
    facts = [survey.facts for survey in surveys if survey.facts is not None]
    result: dict[str, Any] = {"cases": len(surveys), "readable": len(facts)}
    if not facts:
        return result
    with_tumour = [each for each in facts if each.tumour is not None]
    return result | {
        "with_mask": len(with_tumour),
        "percentage": 100 * len(with_tumour) / len(facts),
        "spacing_mm": _rows([each.spacing_mm for each in facts]),
        "size": _rows([each.shape for each in facts]),
        # Dataset cards count slices along the last axis of the file.
        "slices": sum(each.shape[2] for each in facts),
        "orientations": _counts(each.orientation for each in facts),
        "dtypes": _counts(each.dtype for each in facts),
        "formats": _counts(each.suffix for each in facts),
        "sheared": sum(each.sheared for each in facts),
        "oblique": sum(each.turned_deg > _OBLIQUE_DEG for each in facts),
        "intensity": _intensity(facts),
        "tumours": _tumours(with_tumour) if with_tumour else None,
    }


def rows_of_cases(surveys: Sequence[Survey]) -> list[dict[str, Any]]:
    """Statistics of each case."""
    return [_case(survey) for survey in surveys]


def histogram(counts: Sequence[Counts], *, low: int, high: int, width: int) -> list[tuple[int, float]]:
    """Share of voxels per bin over all cases, as (lower edge in HU, share); values outside count in the end bins."""
    total = np.sum(counts, axis=0, dtype=np.int64)
    hu = np.clip(np.arange(LOWEST_HU, HIGHEST_HU + 1), low, high - 1)
    shares = np.bincount((hu - low) // width, weights=total) / max(1, int(total.sum()))
    return [(low + number * width, float(share)) for number, share in enumerate(shares)]


def percentiles(counts: Sequence[Counts]) -> dict[str, int]:
    """`PERCENTILES` of the HU of the voxels of all cases."""
    share = np.cumsum(np.sum(counts, axis=0, dtype=np.int64))
    at = np.searchsorted(share, np.asarray(PERCENTILES) / 100 * share[-1])
    return {f"{percent:g}": int(hu) + LOWEST_HU for percent, hu in zip(PERCENTILES, at, strict=True)}


def _intensity(facts: list[Facts]) -> dict[str, Any]:
    tumours = [each.tumour_counts for each in facts if each.tumour_counts is not None]
    return {
        "body_hu": percentiles([each.body_counts for each in facts]),
        "tumour_hu": percentiles(tumours) if tumours else None,
        "lowest_hu": _spread([each.hu_range[0] for each in facts]),
        "highest_hu": _spread([each.hu_range[1] for each in facts]),
        "cases_above_3071_hu": sum(each.above_range > 0 for each in facts),
        "share_above_3071_hu": _spread([each.above_range for each in facts]),
    }


def _tumours(facts: list[Facts]) -> dict[str, Any]:
    tumours = [each.tumour for each in facts if each.tumour is not None]
    offsets = np.array([each.from_body_mm for each in facts if each.from_body_mm is not None])
    return {
        "ml": _spread([tumour.ml for tumour in tumours]),
        "components": _spread([tumour.components for tumour in tumours]),
        "extent_mm": _rows([tumour.extent_mm for tumour in tumours]),
        "slices": _spread([tumour.slices for tumour in tumours]),
        "at_border": sum(tumour.at_border for tumour in tumours),
        "from_body_mm": {"mean": offsets.mean(axis=0).tolist(), "deviation": offsets.std(axis=0).tolist()}
        if len(offsets)
        else None,
    }


def _case(survey: Survey) -> dict[str, Any]:
    row: dict[str, Any] = {"case": survey.case_id, "findings": len(survey.findings)}
    facts = survey.facts
    if facts is None:
        return row
    row |= {
        "size": list(facts.shape),
        "spacing_mm": list(facts.spacing_mm),
        "orientation": facts.orientation,
        "dtype": facts.dtype,
        "lowest_hu": facts.hu_range[0],
        "highest_hu": facts.hu_range[1],
    }
    if facts.tumour is not None:
        row |= {
            "tumour_ml": facts.tumour.ml,
            "components": facts.tumour.components,
            "extent_mm": list(facts.tumour.extent_mm),
            "tumour_slices": facts.tumour.slices,
            "at_border": facts.tumour.at_border,
        }
    return row


def _rows(values: Sequence[Sequence[float]]) -> dict[str, list[float]]:
    array = np.asarray(values)
    reduced = {"min": array.min(axis=0), "median": np.median(array, axis=0), "max": array.max(axis=0)}
    return {row: reduced[row].tolist() for row in ROWS}


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {"min": float(min(values)), "median": float(np.median(values)), "max": float(max(values))}


def _counts(values: Any) -> dict[str, int]:
    return dict(Counter(values).most_common())
