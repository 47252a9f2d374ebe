"""Scores made up for tests of what is done with scores."""

from __future__ import annotations

from typing import Any

from gtvray.evaluation import CaseScore


def made_score(case_id: str = "a", dsc: float = 0.8, **others: Any) -> CaseScore:
    """A case's scores, good ones where nothing else is said."""
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
