"""Synthetic scores, for tests of what is computed from scores."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from gtvray.evaluation import CaseScore


def made_score(case_id: str = "a", dsc: float = 0.8, **others: Any) -> CaseScore:
    """Scores of a case; good ones unless set otherwise."""
    values: dict[str, Any] = {
        "spacing_mm": (1.0, 1.0, 3.0),
        "dsc": dsc,
        "hd95_mm": 5.0,
        "assd_mm": 2.0,
        "nsd_1mm": 0.5,
        "nsd_2mm": 0.6,
        "nsd_5mm": 0.9,
        "nsd_tolerance_mm": 2.0,
        "volume_reference_ml": 20.0,
        "volume_prediction_ml": 20.0,
        "added_path_length_mm": 100.0,
        "tumours": 1,
        "tumours_missed": int(dsc == 0),
        "tumours_false": 0,
        "missed": False,
    }
    return CaseScore(case_id, **(values | others))


SCORE = made_score("one", 0.8, hd95_mm=4.0, nsd_1mm=0.6, volume_reference_ml=10.0, volume_prediction_ml=12.0)
MISSED_SCORE = replace(
    SCORE, case_id="a|b", dsc=0.0, hd95_mm=400.0, nsd_1mm=0.0, volume_prediction_ml=0.0, tumours_missed=1, missed=True
)
FINE_SCORE = replace(SCORE, spacing_mm=(0.9, 0.9, 1.5), nsd_tolerance_mm=1.0)
COARSE_SCORE = replace(SCORE, spacing_mm=(4.04, 4.04, 3.0), nsd_5mm=0.9, nsd_tolerance_mm=5.0)
