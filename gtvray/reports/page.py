"""An evaluation as one HTML page that needs nothing else: no network, no other file."""

from __future__ import annotations

import io
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any

from PIL import Image

from gtvray import NOTICE
from gtvray.evaluation.comparison import RANKED_BY, Difference
from gtvray.evaluation.metrics import METRICS, CaseScore
from gtvray.evaluation.outcome import BASELINE, Outcome
from gtvray.evaluation.statistics import RESAMPLES
from gtvray.evaluation.strata import TUMOUR_VOLUME, VOXEL_SPACING
from gtvray.evaluation.summary import HD95_DEFINITION
from gtvray.io import html_document, html_picture, html_table
from gtvray.reports.charts import case_chart, paired_chart, strata_chart, volume_chart
from gtvray.reports.drawing import Chart

# With charts and tables a page of some models stays below 5 MB; what is left out is in the folder.
_MOST_PICTURE_BYTES = 2_500_000
_QUALITY = 75


def report_page(outcome: Outcome, folder: Path) -> str:
    """The page.

    Args:
        outcome: the evaluation.
        folder: the report's, where its pictures lie.
    """
    title = f"Evaluation on {outcome.data.title}"
    parts = [f"<h1>{escape(title)}</h1>", f'<p class="notice">{escape(NOTICE)}</p>']
    parts += [f'<p class="notice" role="note">{escape(warning)}.</p>' for warning in outcome.warnings]
    parts += [*_header(outcome), *_comparison(outcome), *_summaries(outcome), *_charts(outcome)]
    parts += [*_worst(outcome, folder), *_cases(outcome), *_definitions(outcome)]
    return html_document(title, parts)


def _header(outcome: Outcome) -> Iterator[str]:
    facts = [("evaluation", outcome.name), ("at (UTC)", outcome.at), ("data", outcome.data.name)]
    yield html_table(("what", ""), [*facts, ("fingerprint of the data", outcome.data.digest)])
    yield "<h2>Models</h2>"
    heads = ("model", "digest of its bundle", "training run", "models scored on these cases by then")
    yield html_table(heads, [(each.name, each.digest, each.training_run, each.looks) for each in outcome.models])
    yield _small("Each model scored on the same cases makes them worth less; the workspace's ledger counts.")


def _comparison(outcome: Outcome) -> Iterator[str]:
    yield "<h2>Ranking</h2>"
    heads = ("model", "mean DSC", "mean HD95 (mm)", "rank by DSC", "rank by HD95", "mean rank")
    yield html_table(
        heads,
        [
            (
                each.name,
                f"{each.mean_dsc:.3f}",
                f"{each.mean_hd95_mm:.1f}",
                each.dsc_rank,
                each.hd95_rank,
                each.mean_rank,
            )
            for each in outcome.comparison.ranking
        ],
        caption="As StructSeg 2019 ranked teams: by DSC, by HD95, and by the mean of both ranks.",
    )
    yield "<h2>Differences</h2>"
    if not outcome.comparison.differences:
        yield _small("A difference needs two models, or a model and the baseline, and at least three cases.")
        return
    yield html_table(
        ("model", "less", "of", "mean", "95 % from", "to", "smallest difference these cases would show"),
        [
            (pair.model, pair.other, METRICS[pair.metric], *(f"{x:+.3f}" for x in (pair.mean, pair.low, pair.high)),
             f"{pair.smallest:.3f}")
            for pair in outcome.comparison.differences
        ],
        caption="Case by case. A difference smaller than the last column may be there and stay unseen.",
    )  # fmt: skip


def _summaries(outcome: Outcome) -> Iterator[str]:
    yield "<h2>Scores</h2>"
    for name, summary in outcome.summaries.items():
        yield f"<h3>{escape(name)}</h3>"
        rows = [_spread(label, summary[metric]) for metric, label in METRICS.items()]
        yield html_table(("score", "mean", "median", "95 % from", "to", "cases"), rows)
        told = (
            f"Aggregated DSC {summary['aggregated_dsc']:.3f}. Cases missed: {summary['missed']} of {summary['cases']}. "
            f"Tumours missed: {summary['tumours_missed']} of {summary['tumours']}; false: {summary['tumours_false']}."
        )
        yield f"<p>{escape(told)}</p>"
        yield from _strata(summary)


def _strata(summary: dict[str, Any]) -> Iterator[str]:
    rows = [
        (part["by"], f"{part['low']:.3g} to {part['high']:.3g} {part['unit']}", part["cases"],
         f"{part['mean_dsc']:.3f}", f"{part['mean_hd95_mm']:.1f}", part["missed"])
        for part in summary["strata"]
    ]  # fmt: skip
    if rows:
        yield html_table(("cases by", "range", "cases", "mean DSC", "mean HD95 (mm)", "missed"), rows)


def _spread(label: str, spread: dict[str, Any]) -> tuple[object, ...]:
    interval = [f"{end:.4g}" for end in spread["interval"]] if spread["interval"] else [None, None]
    return label, f"{spread['mean']:.4g}", f"{spread['median']:.4g}", *interval, spread["n"]


def _charts(outcome: Outcome) -> Iterator[str]:
    yield '<h2>Charts</h2><div class="charts">'
    for chart in _drawn(outcome):
        yield html_picture(chart.content, chart.kind, chart.alt, chart.title)
    yield "</div>"


def _drawn(outcome: Outcome) -> Iterator[Chart]:
    scores = outcome.scores
    yield from (case_chart(scores, metric) for metric in RANKED_BY)
    yield from (volume_chart(name, scores[name]) for name in scores)
    for by in (TUMOUR_VOLUME, VOXEL_SPACING):
        parts = {name: [stratum for stratum in outcome.strata[name] if stratum.by == by] for name in scores}
        if all(parts.values()):
            yield strata_chart(scores, parts, by)
    yield from (paired_chart(scores, pair) for pair in outcome.comparison.differences if _to_the_floor(pair, outcome))


def _to_the_floor(pair: Difference, outcome: Outcome) -> bool:
    """Whether a pair is a model and what all others are held against: the baseline, else the first model."""
    names = list(outcome.scores)
    floor = BASELINE if BASELINE in names else names[0]
    return floor in (pair.model, pair.other)


def _worst(outcome: Outcome, folder: Path) -> Iterator[str]:
    yield "<h2>Worst cases</h2>"
    yield _small(
        "Axial, coronal and sagittal slice through the middle of the reference: reference green, prediction red, at "
        "-160 to 240 HU, patient left on the right. Slices only: no surface is drawn that would show a face."
    )
    left = _MOST_PICTURE_BYTES
    for case in outcome.worst:
        content = _as_webp(folder / case.picture)
        left -= len(content)
        told = f"{case.model}, case {case.told}"
        if left > 0:
            yield html_picture(
                content, "webp", f"slices with outlines of reference and prediction: {told}", told, dark=True
            )
        else:
            yield f"<p>{escape(told)}: {escape(case.picture.as_posix())} in the report's folder.</p>"


def _as_webp(path: Path) -> bytes:
    content = io.BytesIO()
    with Image.open(path) as picture:
        picture.convert("RGB").save(content, format="WEBP", quality=_QUALITY)
    return content.getvalue()


def _cases(outcome: Outcome) -> Iterator[str]:
    yield "<h2>Cases</h2>"
    yield _small("A press on a heading sorts. The same figures are in cases.csv.")
    told = ["reference (ml)", "prediction (ml)", "tumours", "missed", "false", "spacing (mm)", "case missed"]
    rows = [
        (score.dsc, (score.case_id, name, *_row(score)))
        for name, of_model in outcome.scores.items()
        for score in of_model
    ]
    ordered = [row for _, row in sorted(rows, key=lambda entry: entry[0])]
    yield html_table(("case", "model", *METRICS.values(), *told), ordered, sortable=True)


def _row(score: CaseScore) -> tuple[object, ...]:
    figures = [float(getattr(score, metric)) for metric in METRICS]
    volumes = [score.volume_reference_ml, score.volume_prediction_ml]
    spacing = " x ".join(f"{value:.3g}" for value in score.spacing_mm)
    tumours = (score.tumours, score.tumours_missed, score.tumours_false)
    return *(f"{x:.4g}" for x in (*figures, *volumes)), *tumours, spacing, "yes" if score.missed else "no"


def _definitions(outcome: Outcome) -> Iterator[str]:
    yield "<h2>How it is measured</h2>"
    note = next(iter(outcome.summaries.values()))["nsd_note"]
    told = [
        "Every figure is of one case, on the scan's own full grid.",
        f"HD95: {HD95_DEFINITION}.",
        f"NSD: share of both surfaces' area within the tolerance of the other one{f'; {note}' if note else ''}.",
        "Empty masks: both empty scores DSC 1, NSD 1 and distances of 0; one empty scores DSC 0, NSD 0 and the grid's "
        "diagonal as HD95 and ASSD, and is a case missed. No figure is left out of a mean.",
        f"95 %: interval of the mean, {RESAMPLES:,} bootstrap resamples of the cases; below ten cases no narrower than "
        "Student's t interval, below three none.",
        "Aggregated DSC: all cases taken as one mask. Smallest difference: 95 % two-sided, with a power of 80 %.",
        f"{BASELINE}: a mask that knows where tumours usually are and never looks at the scan.",
    ]
    yield f"<ul>{''.join(f'<li>{escape(line)}</li>' for line in told)}</ul>"


def _small(text: str) -> str:
    return f'<p class="small">{escape(text)}</p>'
