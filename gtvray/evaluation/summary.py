"""What people read after an evaluation: a table of cases, and what they come to together."""

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
    """Mean, median and 95 % interval of each score, misses, aggregated DSC and strata; ready for JSON.

    With fewer than three cases an interval is None.

    Raises:
        InputError: no scores.
    """
    if not scores:
        raise InputError("no scores to summarise")
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
    """Which NSD says little, where its tolerance is no more than half a voxel; None if all mean something."""
    coarsest_mm = max(max(score.spacing_mm) for score in scores)
    told = []
    for tolerance in NSD_TOLERANCES_MM:
        coarse = sum(not is_resolved(tolerance, score.spacing_mm) for score in scores)
        if coarse:
            told.append(f"{tolerance:g} mm in {coarse} of {len(scores)} cases")
    if not told:
        return None
    finest_mm = max(score.nsd_tolerance_mm for score in scores)
    return (
        f"voxels are up to {coarsest_mm:.3g} mm long, so a tolerance of {', of '.join(told)} is no more than half a "
        f"voxel, asks for the same voxels and says little; look at {finest_mm:g} mm"
    )


def scores_table(scores: Sequence[CaseScore]) -> str:
    """A Markdown table of the cases, the worst DSC first."""
    lines = [
        "| case | DSC | HD95 (mm) | ASSD (mm) | NSD 1 mm | 2 mm | 5 mm | reference (ml) | prediction (ml) "
        "| path to add (mm) | missed |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | --- |",
    ]
    for score in sorted(scores, key=lambda one: (one.dsc, one.case_id)):
        case_id = score.case_id.replace("|", "\\|")
        lines.append(
            f"| {case_id} | {score.dsc:.4f} | {score.hd95_mm:.2f} | {score.assd_mm:.2f} "
            f"| {score.nsd_1mm:.4f} | {score.nsd_2mm:.4f} | {score.nsd_5mm:.4f} "
            f"| {score.volume_reference_ml:.2f} | {score.volume_prediction_ml:.2f} "
            f"| {score.added_path_length_mm:.0f} | {'yes' if score.missed else ''} |"
        )
    notes = [f"HD95: {HD95_DEFINITION}.", *(f"NSD: {note}." for note in [nsd_note(scores)] if note)]
    return "\n".join([*lines, "", *notes]) + "\n"


def _spread(values: list[float]) -> dict[str, Any]:
    enough = len(values) >= FEWEST_CASES
    interval = bootstrap_mean_interval(values, seed=_SEED) if enough else None
    return {
        "mean": float(np.mean(values)),
        "median": float(np.median(values)),
        "interval": [interval.low, interval.high] if interval else None,
        "n": len(values),
    }
