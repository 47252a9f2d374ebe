"""Charts of an evaluation: scores by case, volume agreement, scores by stratum and paired differences."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from gtvray.evaluation.comparison import RANKED_BY, Difference
from gtvray.evaluation.metrics import METRICS, CaseScore
from gtvray.evaluation.outcome import BASELINE, Outcome
from gtvray.evaluation.strata import TUMOUR_VOLUME, VOXEL_SPACING, Stratum
from gtvray.io import Picture
from gtvray.reports.drawing import COLOURS, LINE_COLOUR, add_legend, encode_chart, new_axes, series_style

Scores = Mapping[str, Sequence[CaseScore]]

# A missed case scores the diagonal of the grid, which would compress all other distances on a linear axis.
_LOG_FROM_MM = 100
_NORMAL_95 = 1.96


def outcome_charts(outcome: Outcome) -> Iterator[Picture]:
    """Draw every chart of an evaluation, in the order of its page."""
    scores = outcome.scores
    yield from (case_chart(scores, metric) for metric in RANKED_BY)
    yield from (volume_chart(name, scores[name]) for name in scores)
    for by in (TUMOUR_VOLUME, VOXEL_SPACING):
        strata = {name: [stratum for stratum in outcome.strata[name] if stratum.by == by] for name in scores}
        if all(strata.values()):
            yield strata_chart(scores, strata, by)
    reference = BASELINE if BASELINE in scores else next(iter(scores))
    for difference in outcome.comparison.differences:
        if reference in (difference.model, difference.other):
            yield paired_chart(scores, difference)


def case_chart(scores: Scores, metric: str) -> Picture:
    """Draw each model's cases, sorted by a score of `METRICS`."""
    values = {name: sorted(float(getattr(score, metric)) for score in cases) for name, cases in scores.items()}
    figure, axes = new_axes()
    for index, (name, of_model) in enumerate(values.items()):
        axes.plot(range(1, len(of_model) + 1), of_model, label=name, linewidth=1, **series_style(index))
    axes.set(xlabel="cases, sorted for each model", ylabel=METRICS[metric])
    if metric == "dsc":
        axes.set_ylim(-0.02, 1.02)
    elif max(of_model[-1] for of_model in values.values()) > _LOG_FROM_MM:
        axes.set_yscale("symlog", linthresh=10)
    add_legend(figure)
    ranges = (f"{name} from {of_model[0]:.3g} to {of_model[-1]:.3g}" for name, of_model in values.items())
    marks = sum(map(len, values.values()))
    return encode_chart(figure, f"{METRICS[metric]} of every case, sorted", "; ".join(ranges), marks)


def volume_chart(name: str, scores: Sequence[CaseScore]) -> Picture:
    """Draw the agreement of predicted and reference volumes after Bland and Altman (1986)."""
    means_ml = [(score.volume_prediction_ml + score.volume_reference_ml) / 2 for score in scores]
    errors_ml = [score.volume_error_ml for score in scores]
    bias, spread = float(np.mean(errors_ml)), _NORMAL_95 * float(np.std(errors_ml, ddof=min(1, len(scores) - 1)))
    summary = f"bias {bias:+.1f} ml, limits of agreement {bias - spread:+.1f} to {bias + spread:+.1f} ml"
    figure, axes = new_axes()
    axes.plot(means_ml, errors_ml, linestyle="none", **series_style(0))
    for level, dashes in ((bias, "-"), (bias - spread, "--"), (bias + spread, "--")):
        axes.axhline(level, color=LINE_COLOUR, linestyle=dashes, linewidth=1)
    axes.set(xlabel="mean of both volumes (ml)", ylabel="prediction - reference (ml)")
    axes.set_title(summary, fontsize=8, loc="right")
    return encode_chart(figure, f"Volumes of {name} against the reference", summary, len(scores))


def strata_chart(scores: Scores, strata: Mapping[str, Sequence[Stratum]], by: str) -> Picture:
    """Draw DSC against tumour volume or voxel spacing: a point per case, a line per stratum's mean.

    Args:
        scores: model -> its scores.
        strata: model -> its strata of this kind.
        by: `TUMOUR_VOLUME` or `VOXEL_SPACING`.
    """
    from matplotlib.ticker import LogLocator, NullFormatter

    volume = by == TUMOUR_VOLUME
    figure, axes = new_axes()
    for index, (name, cases) in enumerate(scores.items()):
        x = [score.volume_reference_ml if volume else max(score.spacing_mm) for score in cases]
        style = series_style(index)
        axes.plot(x, [score.dsc for score in cases], label=name, linestyle="none", alpha=0.6, **style)
        for stratum in strata[name]:
            # A stratum of a single spacing would be a line of length zero.
            margin = 0.0 if stratum.high > stratum.low else 0.05
            axes.hlines(
                stratum.mean_dsc, stratum.low - margin, stratum.high + margin, color=style["color"], linewidth=2
            )
    axes.set(xlabel="reference volume (ml)" if volume else "coarsest spacing (mm)", ylabel="DSC")
    axes.set_ylim(-0.02, 1.02)
    if volume and min(score.volume_reference_ml for cases in scores.values() for score in cases) > 0:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter(NullFormatter())
    add_legend(figure)
    means = "; ".join(f"{name}: {', '.join(map(_stratum_text, of_model))}" for name, of_model in strata.items())
    return encode_chart(figure, f"DSC by {by}", f"means of the strata, {means}", sum(map(len, scores.values())))


def paired_chart(scores: Scores, difference: Difference) -> Picture:
    """Draw the sorted differences between two models by case, with their mean and its 95 % interval."""
    metric, label = difference.metric, METRICS[difference.metric]
    other = {score.case_id: float(getattr(score, metric)) for score in scores[difference.other]}
    values = sorted(float(getattr(score, metric)) - other[score.case_id] for score in scores[difference.model])
    summary = f"mean {difference.mean:+.3f}, 95 % interval {difference.low:+.3f} to {difference.high:+.3f}"
    figure, axes = new_axes()
    axes.bar(range(1, len(values) + 1), values, color=COLOURS[0])
    axes.axhspan(difference.low, difference.high, color=COLOURS[1], alpha=0.25)
    axes.axhline(difference.mean, color=COLOURS[1], linewidth=1.5)
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set(xlabel="cases, sorted", ylabel=f"difference in {label}")
    axes.set_title(summary, fontsize=8, loc="right")
    higher = f"higher in {sum(value > 0 for value in values)} of {len(values)} cases"
    title = f"{label}: {difference.model} minus {difference.other}"
    return encode_chart(figure, title, f"{summary}, {higher}", len(values))


def _stratum_text(stratum: Stratum) -> str:
    return f"{stratum.mean_dsc:.2f} at {stratum.low:.3g} to {stratum.high:.3g} {stratum.unit}"
