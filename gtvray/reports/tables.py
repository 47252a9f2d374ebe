"""Tables of an evaluation, for its page, its Markdown and CSV files, and the terminal."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import asdict, fields
from typing import Any

from gtvray.evaluation.comparison import Comparison
from gtvray.evaluation.metrics import METRICS, CaseScore
from gtvray.evaluation.outcome import Outcome
from gtvray.evaluation.summary import HD95_DEFINITION, nsd_note
from gtvray.io import Table


def outcome_markdown(outcome: Outcome) -> str:
    """An evaluation as Markdown: ranking, differences and a table of each model's cases."""
    parts = [f"# {outcome.data.title}", ranking_table(outcome.comparison).markdown()]
    if outcome.comparison.differences:
        parts.append(difference_table(outcome.comparison).markdown())
    parts += [f"## {name}\n\n{scores_table(of_model)}" for name, of_model in outcome.scores.items()]
    return "\n\n".join(part.rstrip() for part in parts) + "\n"


def outcome_csv(outcome: Outcome) -> str:
    """An evaluation as CSV: a line per model and case."""
    text = io.StringIO()
    heads = ["model", *(field.name for field in fields(CaseScore)), "volume_error_ml"]
    writer = csv.DictWriter(text, heads, lineterminator="\n")
    writer.writeheader()
    for name, of_model in outcome.scores.items():
        for score in of_model:
            spacing = "x".join(f"{value:g}" for value in score.spacing_mm)
            row = {"model": name, "volume_error_ml": score.volume_error_ml, **asdict(score), "spacing_mm": spacing}
            writer.writerow(row)
    return text.getvalue()


def scores_table(scores: Sequence[CaseScore]) -> str:
    """One model's cases as a Markdown table, the lowest DSC first, with the definitions of HD95 and NSD."""
    notes = [f"HD95: {HD95_DEFINITION}.", *(f"NSD: {note}." for note in [nsd_note(scores)] if note)]
    return "\n".join([case_table(scores).markdown(), "", *notes]) + "\n"


def case_table(scores: Sequence[CaseScore]) -> Table:
    """One model's cases, the lowest DSC first."""
    heads = (
        "case", "DSC", "HD95 (mm)", "ASSD (mm)", "NSD 1 mm", "2 mm", "5 mm", "reference (ml)", "prediction (ml)",
        "path to add (mm)", "missed",
    )  # fmt: skip
    rows = [
        (
            score.case_id,
            f"{score.dsc:.4f}",
            f"{score.hd95_mm:.2f}",
            f"{score.assd_mm:.2f}",
            f"{score.nsd_1mm:.4f}",
            f"{score.nsd_2mm:.4f}",
            f"{score.nsd_5mm:.4f}",
            f"{score.volume_reference_ml:.2f}",
            f"{score.volume_prediction_ml:.2f}",
            f"{score.added_path_length_mm:.0f}",
            "yes" if score.missed else "",
        )
        for score in sorted(scores, key=lambda one: (one.dsc, one.case_id))
    ]
    return Table(heads, rows)


def ranking_table(comparison: Comparison) -> Table:
    """Models by mean rank."""
    rows = [
        (each.name, f"{each.mean_dsc:.3f}", f"{each.mean_hd95_mm:.1f}", each.dsc_rank, each.hd95_rank, each.mean_rank)
        for each in comparison.ranking
    ]
    heads = ("model", "mean DSC", "mean HD95 (mm)", "rank by DSC", "rank by HD95", "mean rank")
    return Table(heads, rows, "Ranked as in StructSeg 2019: by DSC, by HD95, and by the mean of both ranks.")


def difference_table(comparison: Comparison) -> Table:
    """Paired differences between models."""
    rows = [
        (
            each.model,
            each.other,
            METRICS[each.metric],
            *(f"{value:+.3f}" for value in (each.mean, each.low, each.high)),
            f"{each.smallest:.3f}",
        )
        for each in comparison.differences
    ]
    heads = ("model", "minus", "score", "mean difference", "95 % from", "to", "detectable difference")
    caption = (
        "Case by case. The detectable difference is the smallest that these cases would show with a power of 80 %; a "
        "smaller one may exist and remain undetected."
    )
    return Table(heads, rows, caption)


def summary_table(summary: dict[str, Any]) -> Table:
    """Mean, median and interval of every score of one model."""
    rows = [_summary_row(label, summary[metric]) for metric, label in METRICS.items()]
    return Table(("score", "mean", "median", "95 % from", "to", "cases"), rows)


def strata_table(summary: dict[str, Any]) -> Table:
    """One model's scores by tumour volume and by voxel spacing."""
    rows = [
        (
            each["by"],
            f"{each['low']:.3g} to {each['high']:.3g} {each['unit']}",
            each["cases"],
            f"{each['mean_dsc']:.3f}",
            f"{each['mean_hd95_mm']:.1f}",
            each["missed"],
        )
        for each in summary["strata"]
    ]
    return Table(("stratum", "range", "cases", "mean DSC", "mean HD95 (mm)", "missed"), rows)


def all_cases_table(outcome: Outcome) -> Table:
    """Every score of every model and case, the lowest DSC first."""
    heads = ("reference (ml)", "prediction (ml)", "tumours", "missed", "false", "spacing (mm)", "case missed")
    rows = sorted(_case_rows(outcome), key=lambda entry: entry[0])
    return Table(("case", "model", *METRICS.values(), *heads), [row for _, row in rows])


def _summary_row(label: str, spread: dict[str, Any]) -> tuple[object, ...]:
    interval = [f"{end:.4g}" for end in spread["interval"]] if spread["interval"] else [None, None]
    return label, f"{spread['mean']:.4g}", f"{spread['median']:.4g}", *interval, spread["n"]


def _case_rows(outcome: Outcome) -> Iterator[tuple[float, tuple[object, ...]]]:
    """DSC and row of each model's each case."""
    for name, of_model in outcome.scores.items():
        for score in of_model:
            values = [float(getattr(score, metric)) for metric in METRICS]
            volumes = [score.volume_reference_ml, score.volume_prediction_ml]
            tumours = (score.tumours, score.tumours_missed, score.tumours_false)
            spacing = " x ".join(f"{value:.3g}" for value in score.spacing_mm)
            texts = [f"{value:.4g}" for value in (*values, *volumes)]
            yield score.dsc, (score.case_id, name, *texts, *tumours, spacing, "yes" if score.missed else "no")
