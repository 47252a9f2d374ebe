"""The HTML page of an evaluation."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from gtvray import NOTICE
from gtvray.evaluation.outcome import BASELINE, Outcome, WorstCase
from gtvray.evaluation.statistics import RESAMPLES
from gtvray.evaluation.summary import HD95_DEFINITION
from gtvray.io import Picture, Table, render_page
from gtvray.reports.charts import outcome_charts
from gtvray.reports.tables import all_cases_table, difference_table, ranking_table, strata_table, summary_table

# With charts and tables, the page of a few models stays below 5 MB; further pictures are in the report's folder.
_MAX_PICTURE_BYTES = 2_500_000
_WEBP_QUALITY = 75


def report_page(outcome: Outcome, folder: Path) -> str:
    """Render the page of an evaluation.

    Args:
        outcome: the evaluation.
        folder: the report's folder, which holds its pictures.
    """
    return render_page(
        "gtvray.reports",
        "evaluation.html",
        notice=NOTICE,
        outcome=outcome,
        facts=[
            ("evaluation", outcome.name),
            ("time (UTC)", outcome.at),
            ("dataset", outcome.data.name),
            ("dataset fingerprint", outcome.data.digest),
        ],
        models=_models_table(outcome),
        ranking=ranking_table(outcome.comparison),
        differences=difference_table(outcome.comparison),
        summaries=[_summary(name, summary) for name, summary in outcome.summaries.items()],
        charts=list(outcome_charts(outcome)),
        worst=list(_worst_cases(outcome, folder)),
        cases=all_cases_table(outcome),
        definitions=_definitions(outcome),
    )


def _models_table(outcome: Outcome) -> Table:
    rows = [(each.name, each.digest, each.training_run, each.looks) for each in outcome.models]
    return Table(("model", "bundle digest", "training run", "models scored on these cases so far"), rows)


def _summary(name: str, summary: dict[str, Any]) -> dict[str, Any]:
    """The template's view of one model's summary."""
    totals = (
        f"Aggregated DSC {summary['aggregated_dsc']:.3f}. Missed cases: {summary['missed']} of {summary['cases']}. "
        f"Missed tumours: {summary['tumours_missed']} of {summary['tumours']}; false tumours: "
        f"{summary['tumours_false']}."
    )
    return {"name": name, "scores": summary_table(summary), "totals": totals, "strata": strata_table(summary)}


def _worst_cases(outcome: Outcome, folder: Path) -> Iterator[tuple[Picture | None, str, WorstCase]]:
    """Picture, caption and case; no picture once the page holds enough of them."""
    left = _MAX_PICTURE_BYTES
    for case in outcome.worst:
        content = _as_webp(folder / case.picture)
        left -= len(content)
        caption = f"{case.model}, case {case.caption}"
        alt = f"slices with outlines of reference and prediction: {caption}"
        yield Picture(content, "webp", alt, caption) if left > 0 else None, caption, case


def _as_webp(path: Path) -> bytes:
    content = io.BytesIO()
    with Image.open(path) as picture:
        picture.convert("RGB").save(content, format="WEBP", quality=_WEBP_QUALITY)
    return content.getvalue()


def _definitions(outcome: Outcome) -> list[str]:
    note = next(iter(outcome.summaries.values()))["nsd_note"]
    return [
        "Every score is of one case, on the scan's own full grid.",
        f"HD95: {HD95_DEFINITION}.",
        f"NSD: share of both surfaces' area within the tolerance of the other surface{f'; {note}' if note else ''}.",
        "Empty masks: both empty scores DSC 1, NSD 1 and distances of 0; one empty scores DSC 0, NSD 0 and the grid's "
        "diagonal as HD95 and ASSD, and is a missed case. No score is left out of a mean.",
        f"95 %: interval of the mean, {RESAMPLES:,} bootstrap resamples of the cases; with fewer than ten cases no "
        "narrower than Student's t interval, with fewer than three no interval.",
        "Aggregated DSC: all cases taken as one mask. Detectable difference: 95 % two-sided, with a power of 80 %.",
        f"{BASELINE}: the mean position of the training masks; it does not use the image.",
    ]
