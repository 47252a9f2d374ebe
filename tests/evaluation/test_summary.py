"""The table of cases and what they come to together."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from gtvray.errors import InputError
from gtvray.evaluation import scores_table, summarise

from ..scores import made_score

SCORE = made_score("one", 0.8, hd95_mm=4.0, nsd_1mm=0.6, volume_reference_ml=10.0, volume_prediction_ml=12.0)
MISSED = replace(
    SCORE, case_id="a|b", dsc=0.0, hd95_mm=400.0, nsd_1mm=0.0, volume_prediction_ml=0.0, tumours_missed=1, missed=True
)
FINE = replace(SCORE, spacing_mm=(0.9, 0.9, 1.5), nsd_tolerance_mm=1.0)
COARSE = replace(SCORE, spacing_mm=(4.04, 4.04, 3.0), nsd_5mm=0.9, nsd_tolerance_mm=5.0)


def test_table_has_the_worst_case_first_and_names_its_definition() -> None:
    lines = scores_table([SCORE, MISSED]).splitlines()
    assert lines[2].startswith("| a\\|b | 0.0000 |")
    assert lines[2].endswith("| yes |")
    assert lines[3] == "| one | 0.8000 | 4.00 | 2.00 | 0.6000 | 0.6000 | 0.9000 | 10.00 | 12.00 | 100 |  |"
    assert "max of the two directed 95th percentiles" in lines[-2]
    assert len({line.count("|") - 2 * line.count("\\|") for line in lines[:2] + lines[3:4]}) == 1


def test_summary_counts_every_case() -> None:
    summary = summarise([SCORE, SCORE, MISSED, COARSE])
    json.dumps(summary, allow_nan=False)
    assert (summary["cases"], summary["missed"]) == (4, 1)
    assert (summary["tumours"], summary["tumours_missed"], summary["tumours_false"]) == (4, 1, 0)
    dsc = summary["dsc"]
    assert (dsc["mean"], dsc["median"], dsc["n"]) == (pytest.approx(0.6), 0.8, 4)
    assert dsc["interval"][0] < 0.6 < dsc["interval"][1]
    assert summary["aggregated_dsc"] == pytest.approx(0.8 * 66 / 76)
    assert summary["nsd_1mm"]["mean"] == pytest.approx(0.45)
    # Signed: what is missed must not cancel what is too much once the sign is dropped.
    assert summary["volume_error_ml"]["mean"] == pytest.approx((2 + 2 - 10 + 2) / 4)
    assert summary["absolute_volume_error_ml"]["mean"] == pytest.approx(4.0)


def test_coarse_voxels_are_told_of_beside_nsd() -> None:
    assert summarise([FINE])["nsd_note"] is None
    note = summarise([FINE, SCORE, COARSE])["nsd_note"]
    assert note.startswith("voxels are up to 4.04 mm long, so a tolerance of 1 mm in 2 of 3 cases, of 2 mm in 1 of 3")
    assert note.endswith("look at 5 mm")
    assert note in scores_table([FINE, SCORE, COARSE])


def test_summary_of_two_cases_has_no_interval_and_of_none_is_refused() -> None:
    hd95 = summarise([SCORE, SCORE])["hd95_mm"]
    assert (hd95["mean"], hd95["interval"]) == (4.0, None)
    with pytest.raises(InputError, match="no scores"):
        summarise([])
