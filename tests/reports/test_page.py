"""The page of an evaluation is complete and self-contained, and escapes names."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gtvray import NOTICE
from gtvray.evaluation import METRICS, CaseScore, Outcome
from gtvray.evaluation.outcome import BASELINE, DataFacts, ModelFacts, WorstCase
from gtvray.reports import charts
from gtvray.reports.page import report_page

from ..pages import assert_self_contained
from ..scores import made_score

ODD = '<b>1|2</b> & "$x$'
DATA = DataFacts("held_out", "50 cases of GTV", "d" * 64)


def cases(mean: float, count: int, seed: int = 0) -> list[CaseScore]:
    rng = np.random.default_rng(seed)
    ids = [ODD, *(f"case {n}" for n in range(1, count))]
    return [
        made_score(
            case_id,
            float(np.clip(mean + rng.normal(0, 0.1), 0, 1)),
            hd95_mm=float(rng.gamma(2, 10)),
            volume_prediction_ml=float(rng.gamma(2, 15)),
            volume_reference_ml=2.0 + number,
            spacing_mm=(1.0, 1.0, 3.0 if number % 2 else 5.0),
        )
        for number, case_id in enumerate(ids)
    ]


def outcome(folder: Path, count: int, models: tuple[str, ...] = ("champion", ODD), baseline: bool = True) -> Outcome:
    noise = np.random.default_rng(0).integers(0, 255, (480, 1200, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "worst.png")
    scores = {name: cases(0.7 - number / 10, count) for number, name in enumerate(models)}
    facts = [
        ModelFacts(name, str(number) * 64, number + 1, "run-1", f"{number}-data") for number, name in enumerate(models)
    ]
    worst = [
        WorstCase(name, score.case_id, f"{score.case_id}: DSC 0.1", Path("worst.png"))
        for name in models
        for score in scores[name][:3]
    ]
    of_baseline = {BASELINE: cases(0.2, count, 1)} if baseline else {}
    return Outcome(
        "evaluate-1", "2026-01-02T03:04:05+00:00", DATA, tuple(facts), {**scores, **of_baseline}, tuple(worst)
    )


def test_page_has_every_case_metric_and_picture_and_fetches_nothing(tmp_path: Path) -> None:
    found = outcome(tmp_path, 50)
    text = report_page(found, tmp_path)
    page = assert_self_contained(text)
    assert len(text) < 5_000_000

    of_cases = [row for row in page.rows if len(row) == len(METRICS) + 9]
    heads, rows = of_cases[0], of_cases[1:]
    assert set(METRICS.values()) <= set(heads)
    wanted = {(score.case_id, name) for name, of_model in found.scores.items() for score in of_model}
    assert {(row[0], row[1]) for row in rows} == wanted
    assert len(rows) == 150
    dsc = [float(row[2]) for row in rows]
    assert dsc == sorted(dsc), "the lowest DSC comes first"

    for name, summary in found.summaries.items():
        for metric, label in METRICS.items():
            spread = summary[metric]
            values = [spread["mean"], spread["median"], *spread["interval"]]
            assert [label, *(f"{value:.4g}" for value in values), "50"] in page.rows, (name, metric)
    for word in (NOTICE, "evaluate-1", "0" * 64, "1" * 64, "d" * 64, "run-1", "10,000 bootstrap"):
        assert word in text

    pictures = page.attributes("img", "src")
    assert all(page.attributes("img", "alt"))
    kinds = [str(source).partition(";")[0].removeprefix("data:image/") for source in pictures]
    # Sorted DSC and HD95; volumes of three models; two kinds of strata; two models minus the baseline by two scores;
    # three worst cases of two models.
    assert (kinds.count("svg+xml"), kinds.count("webp")) == (2 + 3 + 2 + 4, 6)
    for source in pictures:
        content = base64.b64decode(str(source).partition(",")[2])
        assert b"<svg" in content or content.startswith(b"RIFF")

    # Names are escaped, tables have row and column headings, and the table of cases can be sorted.
    assert "<b>" not in text
    assert set(page.attributes("th", "scope")) == {"col", "row"}
    assert page.attributes("table", "class").count("sortable") == 1
    assert page.attributes("html", "lang") == ["en"]
    (policy,) = [attrs["content"] for tag, attrs in page.tags if attrs.get("http-equiv") == "Content-Security-Policy"]
    assert policy is not None
    assert policy.startswith("default-src 'none'")


@pytest.mark.parametrize("count", [1, 3])
def test_page_of_one_model_on_few_cases(tmp_path: Path, count: int) -> None:
    found = outcome(tmp_path, count, ("champion",), baseline=False)
    text = report_page(found, tmp_path)
    assert assert_self_contained(text).open == []
    assert "A difference needs two models" in text
    json.dumps(found.as_dict(), allow_nan=False)


def test_pictures_beyond_the_page_s_limit_are_named_and_omitted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gtvray.reports import page

    monkeypatch.setattr(page, "_MAX_PICTURE_BYTES", 1)
    text = report_page(outcome(tmp_path, 1), tmp_path)
    assert "image/webp" not in text
    assert text.count("worst.png in the report") == 2


def test_charts_of_many_marks_are_png() -> None:
    few, many = (charts.case_chart({"a": cases(0.5, count)}, "dsc") for count in (50, 600))
    assert (few.kind, many.kind) == ("svg+xml", "png")
    assert few == charts.case_chart({"a": cases(0.5, 50)}, "dsc"), "equal scores give equal bytes"
    with Image.open(io.BytesIO(many.content)) as picture:
        assert picture.size[0] > 600


def test_warnings_precede_the_scores(tmp_path: Path) -> None:
    assert outcome(tmp_path, 3).warnings == []
    known = outcome(tmp_path, 3)
    facts = (ModelFacts("champion", "0" * 64, 21, None, DATA.digest), known.models[1])
    reused = Outcome(known.name, known.at, DATA, facts, known.scores, known.worst)
    trained, looked = reused.warnings
    assert trained.startswith("champion was trained on these data")
    assert looked.startswith("21 models have been scored on these cases")
    text = report_page(reused, tmp_path)
    assert text.index(trained) < text.index("<h2>")
    assert reused.as_dict()["warnings"] == [trained, looked]
