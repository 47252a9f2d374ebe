"""Summary of scores over all cases, and their strata."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from gtvray.errors import InputError
from gtvray.evaluation import stratify, summarise

from ..scores import COARSE_SCORE, FINE_SCORE, MISSED_SCORE, SCORE, made_score


def test_summary_counts_every_case() -> None:
    summary = summarise([SCORE, SCORE, MISSED_SCORE, COARSE_SCORE])
    json.dumps(summary, allow_nan=False)
    assert (summary["cases"], summary["missed"]) == (4, 1)
    assert (summary["tumours"], summary["tumours_missed"], summary["tumours_false"]) == (4, 1, 0)
    dsc = summary["dsc"]
    assert (dsc["mean"], dsc["median"], dsc["n"]) == (pytest.approx(0.6), 0.8, 4)
    assert dsc["interval"][0] < 0.6 < dsc["interval"][1]
    assert summary["aggregated_dsc"] == pytest.approx(0.8 * 66 / 76)
    assert summary["nsd_1mm"]["mean"] == pytest.approx(0.45)
    # Errors of both signs cancel in the mean of the signed error only.
    assert summary["volume_error_ml"]["mean"] == pytest.approx((2 + 2 - 10 + 2) / 4)
    assert summary["absolute_volume_error_ml"]["mean"] == pytest.approx(4.0)


def test_nsd_tolerances_below_half_a_voxel_are_noted() -> None:
    assert summarise([FINE_SCORE])["nsd_note"] is None
    note = summarise([FINE_SCORE, SCORE, COARSE_SCORE])["nsd_note"]
    assert note.startswith("voxels are up to 4.04 mm long, so a tolerance of 1 mm in 2 of 3 cases, of 2 mm in 1 of 3")
    assert note.endswith("use 5 mm")


def test_two_cases_have_no_interval() -> None:
    hd95 = summarise([SCORE, SCORE])["hd95_mm"]
    assert (hd95["mean"], hd95["interval"]) == (4.0, None)


def test_no_cases_are_refused() -> None:
    with pytest.raises(InputError, match="no scores"):
        summarise([])


def test_strata_are_thirds_by_volume_and_groups_by_spacing() -> None:
    scores = [
        made_score(
            str(n), n / 10, volume_reference_ml=float(n), spacing_mm=(1.0, 1.0, 3.0 if n < 6 else 5.1), missed=n == 8
        )
        for n in range(1, 10)
    ]
    small, middle, large, fine, coarse = stratify(scores[::-1])
    assert [(s.low, s.high, s.cases, s.unit) for s in (small, middle, large)] == [
        (1.0, 3.0, 3, "ml"),
        (4.0, 6.0, 3, "ml"),
        (7.0, 9.0, 3, "ml"),
    ]
    assert small.mean_dsc == pytest.approx(0.2)
    assert (middle.missed, large.missed) == (0, 1)
    assert [(s.by, s.low, s.high, s.cases) for s in (fine, coarse)] == [
        ("voxel spacing", 3.0, 3.0, 5),
        ("voxel spacing", 5.1, 5.1, 4),
    ]


def test_too_few_cases_have_no_strata() -> None:
    assert stratify([replace(SCORE, case_id=str(n)) for n in range(5)]) == []
    assert stratify([]) == []
