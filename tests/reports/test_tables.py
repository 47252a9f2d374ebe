"""Tables of an evaluation as Markdown and CSV."""

from __future__ import annotations

import csv
import io

import pytest

from gtvray.evaluation import Outcome, compare
from gtvray.evaluation.outcome import DataFacts, ModelFacts
from gtvray.reports import difference_table, ranking_table, scores_table
from gtvray.reports.tables import outcome_csv, outcome_markdown

from ..scores import COARSE_SCORE, FINE_SCORE, MISSED_SCORE, SCORE, made_score


def outcome() -> Outcome:
    scores = {
        name: [made_score(f'{n}|"', dsc + n / 10, spacing_mm=(1.0, 1.0, 5.0)) for n in range(3)]
        for name, dsc in (("a", 0.5), ("b", 0.4))
    }
    models = tuple(ModelFacts(name, name * 64, 1) for name in scores)
    return Outcome("evaluate-1", "2026-01-02T03:04:05+00:00", DataFacts("data", "3 cases", "d"), models, scores, ())


def test_table_has_the_lowest_dsc_first_and_defines_hd95() -> None:
    lines = scores_table([SCORE, MISSED_SCORE]).splitlines()
    assert lines[2].startswith("| a\\|b | 0.0000 |")
    assert lines[2].endswith("| yes |")
    assert lines[3] == "| one | 0.8000 | 4.00 | 2.00 | 0.6000 | 0.6000 | 0.9000 | 10.00 | 12.00 | 100 |  |"
    assert "max of the two directed 95th percentiles" in lines[-2]
    assert len({line.count("|") - 2 * line.count("\\|") for line in lines[:2] + lines[3:4]}) == 1


def test_table_notes_nsd_tolerances_below_half_a_voxel() -> None:
    assert "NSD: voxels are up to 4.04 mm long" in scores_table([FINE_SCORE, SCORE, COARSE_SCORE])
    assert "NSD: " not in scores_table([FINE_SCORE])


def test_markdown_has_ranks_differences_and_every_model() -> None:
    text = outcome_markdown(outcome())
    assert text.startswith("# 3 cases\n\n| model | mean DSC | mean HD95 (mm) | rank by DSC |")
    assert "| a | b | DSC | +0.100 |" in text
    assert [line for line in text.splitlines() if line.startswith("## ")] == ["## a", "## b"]
    assert text.count('| 2\\|" |') == 2


def test_tables_of_a_comparison() -> None:
    comparison = compare(outcome().scores)
    assert [row[0] for row in ranking_table(comparison).cells] == ["a", "b"]
    first = difference_table(comparison).cells[0]
    assert first[:4] == ["a", "b", "DSC", "+0.100"]
    assert float(first[4]) <= 0.1 <= float(first[5])


def test_csv_has_a_line_per_model_and_case() -> None:
    rows = list(csv.DictReader(io.StringIO(outcome_csv(outcome()))))
    assert [(row["model"], row["case_id"]) for row in rows] == [(m, f'{n}|"') for m in "ab" for n in range(3)]
    assert rows[0]["spacing_mm"] == "1x1x5"
    error = float(rows[0]["volume_prediction_ml"]) - float(rows[0]["volume_reference_ml"])
    assert float(rows[0]["volume_error_ml"]) == pytest.approx(error)
