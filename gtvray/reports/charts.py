"""The charts of an evaluation: scores case by case, agreement of volumes, where a model is weak, one less another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from gtvray.evaluation.comparison import Difference
from gtvray.evaluation.metrics import METRICS, CaseScore
from gtvray.evaluation.strata import TUMOUR_VOLUME, Stratum
from gtvray.reports.drawing import COLOURS, Chart, add_legend, finished, new_axes, style

Scores = Mapping[str, Sequence[CaseScore]]

# A miss counts with the grid's diagonal: beyond this, all other distances would lie on the axis.
_LOG_FROM_MM = 100
_LIMITS = 1.96


def case_chart(scores: Scores, metric: str) -> Chart:
    """Each model's cases, sorted by a score of `METRICS`."""
    values = {name: sorted(float(getattr(score, metric)) for score in cases) for name, cases in scores.items()}
    figure, axes = new_axes()
    for number, (name, of_model) in enumerate(values.items()):
        axes.plot(range(1, len(of_model) + 1), of_model, label=name, linewidth=1, **style(number))
    axes.set(xlabel="cases, sorted for each model", ylabel=METRICS[metric])
    if metric == "dsc":
        axes.set_ylim(-0.02, 1.02)
    elif max(of_model[-1] for of_model in values.values()) > _LOG_FROM_MM:
        axes.set_yscale("symlog", linthresh=10)
    add_legend(figure)
    ends = (f"{name} from {of_model[0]:.3g} to {of_model[-1]:.3g}" for name, of_model in values.items())
    marks = sum(map(len, values.values()))
    return finished(figure, marks, f"{METRICS[metric]} of every case, sorted", "; ".join(ends))


def volume_chart(name: str, scores: Sequence[CaseScore]) -> Chart:
    """Agreement of the volumes of prediction and reference, as Bland and Altman (1986) draw it."""
    means_ml = [(score.volume_prediction_ml + score.volume_reference_ml) / 2 for score in scores]
    errors_ml = [score.volume_error_ml for score in scores]
    bias, spread = float(np.mean(errors_ml)), _LIMITS * float(np.std(errors_ml, ddof=min(1, len(scores) - 1)))
    told = f"bias {bias:+.1f} ml, limits of agreement {bias - spread:+.1f} to {bias + spread:+.1f} ml"
    figure, axes = new_axes()
    axes.plot(means_ml, errors_ml, linestyle="none", **style(0))
    for level, dashes in ((bias, "-"), (bias - spread, "--"), (bias + spread, "--")):
        axes.axhline(level, color="#44525e", linestyle=dashes, linewidth=1)
    axes.set(xlabel="mean of both volumes (ml)", ylabel="prediction less reference (ml)")
    axes.set_title(told, fontsize=8, loc="right")
    return finished(figure, len(scores), f"Volumes of {name} against the reference", told)


def strata_chart(scores: Scores, strata: Mapping[str, Sequence[Stratum]], by: str) -> Chart:
    """DSC against what a division goes by, each case a mark, each stratum's mean a line.

    Args:
        scores: of the models.
        strata: model -> its strata.
        by: the division, `TUMOUR_VOLUME` or `VOXEL_SPACING`.
    """
    volume = by == TUMOUR_VOLUME
    figure, axes = new_axes()
    for number, (name, cases) in enumerate(scores.items()):
        places = [score.volume_reference_ml if volume else max(score.spacing_mm) for score in cases]
        look = style(number)
        axes.plot(places, [score.dsc for score in cases], label=name, linestyle="none", alpha=0.6, **look)
        for part in strata[name]:
            # A stratum of one spacing would be a line without length.
            margin = 0.0 if part.high > part.low else 0.05
            axes.hlines(part.mean_dsc, part.low - margin, part.high + margin, color=look["color"], linewidth=2)
    axes.set(xlabel="reference volume (ml)" if volume else "coarsest spacing (mm)", ylabel="DSC")
    axes.set_ylim(-0.02, 1.02)
    if volume and min(score.volume_reference_ml for cases in scores.values() for score in cases) > 0:
        axes.set_xscale("log")
    add_legend(figure)
    told = "; ".join(f"{name}: {', '.join(map(_stratum, parts))}" for name, parts in strata.items())
    return finished(figure, sum(map(len, scores.values())), f"DSC by {by}", f"means of the strata, {told}")


def paired_chart(scores: Scores, difference: Difference) -> Chart:
    """One model less another, case by case and sorted, with the mean and its interval."""
    metric, name = difference.metric, METRICS[difference.metric]
    theirs = {score.case_id: float(getattr(score, metric)) for score in scores[difference.other]}
    gains = sorted(float(getattr(score, metric)) - theirs[score.case_id] for score in scores[difference.model])
    told = f"mean {difference.mean:+.3f}, 95 % interval {difference.low:+.3f} to {difference.high:+.3f}"
    figure, axes = new_axes()
    axes.bar(range(1, len(gains) + 1), gains, color=COLOURS[0])
    axes.axhspan(difference.low, difference.high, color=COLOURS[1], alpha=0.25)
    axes.axhline(difference.mean, color=COLOURS[1], linewidth=1.5)
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set(xlabel="cases, sorted", ylabel=f"difference in {name}")
    axes.set_title(told, fontsize=8, loc="right")
    more = f"higher in {sum(gain > 0 for gain in gains)} of {len(gains)} cases"
    return finished(figure, len(gains), f"{name}: {difference.model} less {difference.other}", f"{told}, {more}")


def _stratum(part: Stratum) -> str:
    return f"{part.mean_dsc:.2f} at {part.low:.3g} to {part.high:.3g} {part.unit}"
