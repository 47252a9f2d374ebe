"""Summary of a model's scores over all cases."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from gtvray.errors import InputError
from gtvray.evaluation.metrics import METRICS, NSD_TOLERANCES_MM, CaseScore, is_resolved
from gtvray.evaluation.statistics import FEWEST_CASES, aggregated_dsc, bootstrap_mean_interval
from gtvray.evaluation.strata import stratify

HD95_DEFINITION = "max of the two directed 95th percentiles between surface voxels, mm"
_SEED = 0


def summarise(scores: Sequence[CaseScore]) -> dict[str, Any]:
    """Compute mean, median and 95 % interval of each score, counts of misses, aggregated DSC and strata, for JSON.

    Below three cases an interval is None.

    Raises:
        InputError: there are no scores.
    """
    if not scores:
        raise InputError("no scores to summarise", do="score at least one case")
    return {
        "cases": len(scores),
        "missed": sum(score.missed for score in scores),
        "tumours": sum(score.tumours for score in scores),
        "tumours_missed": sum(score.tumours_missed for score in scores),
        "tumours_false": sum(score.tumours_false for score in scores),
        "aggregated_dsc": aggregated_dsc(scores),
        **{name: _spread([float(getattr(score, name)) for score in scores]) for name in METRICS},
        "strata": [asdict(stratum) for stratum in stratify(scores)],
        "hd95_definition": HD95_DEFINITION,
        "nsd_note": nsd_note(scores),
    }


def nsd_note(scores: Sequence[CaseScore]) -> str | None:
    """Name the NSD tolerances that the cases' voxels do not resolve; None if they resolve all."""
    coarsest_mm = max(max(score.spacing_mm) for score in scores)
    unresolved = []
    for tolerance in NSD_TOLERANCES_MM:
        coarse = sum(not is_resolved(tolerance, score.spacing_mm) for score in scores)
        if coarse:
            unresolved.append(f"{tolerance:g} mm in {coarse} of {len(scores)} cases")
    if not unresolved:
        return None
    finest_mm = max(score.nsd_tolerance_mm for score in scores)
    return (
        f"voxels are up to {coarsest_mm:.3g} mm long, so a tolerance of {', of '.join(unresolved)} is at most half a "
        f"voxel and not informative; use {finest_mm:g} mm"
    )


def _spread(values: list[float]) -> dict[str, Any]:
    enough = len(values) >= FEWEST_CASES
    interval = bootstrap_mean_interval(values, seed=_SEED) if enough else None
    return {
        "mean": float(np.mean(values)),
        "median": float(np.median(values)),
        "interval": [interval.low, interval.high] if interval else None,
        "n": len(values),
    }
