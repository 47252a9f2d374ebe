"""The charts of an evaluation: scores case by case, agreement of volumes, where a model is weak, one less another.

Each is a small file for a page to hold, with a sentence for those who do not see it.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from gtvray.evaluation.comparison import Difference
from gtvray.evaluation.metrics import METRICS, CaseScore
from gtvray.evaluation.strata import TUMOUR_VOLUME, Stratum

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Scores = Mapping[str, Sequence[CaseScore]]

# Okabe and Ito's colours, told apart with colour-blind eyes too, and by their marks in black and white.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000")
_MARKS = "osD^v<>"
# A miss counts with the grid's diagonal: beyond this, all other distances would lie on the axis.
_LOG_FROM_MM = 100
_LIMITS = 1.96
_MOST_SVG_MARKS = 500


@dataclass(frozen=True)
class Chart:
    """A drawing.

    Attributes:
        title: what it is of.
        alt: what it shows, in words.
        content: the file.
        kind: "svg+xml", or "png" where there are so many marks that it is smaller.
    """

    title: str
    alt: str
    content: bytes
    kind: str


def case_chart(scores: Scores, metric: str) -> Chart:
    """Each model's cases, sorted by a score of `METRICS`."""
    values = {name: sorted(float(getattr(score, metric)) for score in cases) for name, cases in scores.items()}
    figure, axes = _drawing()
    for number, (name, of_model) in enumerate(values.items()):
        axes.plot(range(1, len(of_model) + 1), of_model, label=name, linewidth=1, **_style(number))
    axes.set(xlabel="cases, sorted for each model", ylabel=METRICS[metric])
    if metric == "dsc":
        axes.set_ylim(-0.02, 1.02)
    elif max(of_model[-1] for of_model in values.values()) > _LOG_FROM_MM:
        axes.set_yscale("symlog", linthresh=10)
    _legend(axes)
    ends = (f"{name} from {of_model[0]:.3g} to {of_model[-1]:.3g}" for name, of_model in values.items())
    marks = sum(map(len, values.values()))
    return _finished(figure, marks, f"{METRICS[metric]} of every case, sorted", "; ".join(ends))


def volume_chart(name: str, scores: Sequence[CaseScore]) -> Chart:
    """Agreement of the volumes of prediction and reference, as Bland and Altman (1986) draw it."""
    means_ml = [(score.volume_prediction_ml + score.volume_reference_ml) / 2 for score in scores]
    errors_ml = [score.volume_error_ml for score in scores]
    bias, spread = float(np.mean(errors_ml)), _LIMITS * float(np.std(errors_ml, ddof=min(1, len(scores) - 1)))
    told = f"bias {bias:+.1f} ml, limits of agreement {bias - spread:+.1f} to {bias + spread:+.1f} ml"
    figure, axes = _drawing()
    axes.plot(means_ml, errors_ml, linestyle="none", **_style(0))
    for level, dashes in ((bias, "-"), (bias - spread, "--"), (bias + spread, "--")):
        axes.axhline(level, color="#44525e", linestyle=dashes, linewidth=1)
    axes.set(xlabel="mean of both volumes (ml)", ylabel="prediction less reference (ml)")
    axes.set_title(told, fontsize=8, loc="right")
    return _finished(figure, len(scores), f"Volumes of {name} against the reference", told)


def strata_chart(scores: Scores, strata: Mapping[str, Sequence[Stratum]], by: str) -> Chart:
    """DSC against what a division goes by, each case a mark, each stratum's mean a line.

    Args:
        scores: of the models.
        strata: model -> its strata.
        by: the division, `TUMOUR_VOLUME` or `VOXEL_SPACING`.
    """
    volume = by == TUMOUR_VOLUME
    figure, axes = _drawing()
    for number, (name, cases) in enumerate(scores.items()):
        places = [score.volume_reference_ml if volume else max(score.spacing_mm) for score in cases]
        style = _style(number)
        axes.plot(places, [score.dsc for score in cases], label=name, linestyle="none", alpha=0.6, **style)
        for part in strata[name]:
            # A stratum of one spacing would be a line without length.
            margin = 0.0 if part.high > part.low else 0.05
            axes.hlines(part.mean_dsc, part.low - margin, part.high + margin, color=style["color"], linewidth=2)
    axes.set(xlabel="reference volume (ml)" if volume else "coarsest spacing (mm)", ylabel="DSC")
    axes.set_ylim(-0.02, 1.02)
    if volume and min(score.volume_reference_ml for cases in scores.values() for score in cases) > 0:
        axes.set_xscale("log")
    _legend(axes)
    told = "; ".join(f"{name}: {', '.join(map(_stratum, parts))}" for name, parts in strata.items())
    return _finished(figure, sum(map(len, scores.values())), f"DSC by {by}", f"means of the strata, {told}")


def paired_chart(scores: Scores, difference: Difference) -> Chart:
    """One model less another, case by case and sorted, with the mean and its interval."""
    metric, name = difference.metric, METRICS[difference.metric]
    theirs = {score.case_id: float(getattr(score, metric)) for score in scores[difference.other]}
    gains = sorted(float(getattr(score, metric)) - theirs[score.case_id] for score in scores[difference.model])
    told = f"mean {difference.mean:+.3f}, 95 % interval {difference.low:+.3f} to {difference.high:+.3f}"
    figure, axes = _drawing()
    axes.bar(range(1, len(gains) + 1), gains, color=_COLOURS[0])
    axes.axhspan(difference.low, difference.high, color=_COLOURS[1], alpha=0.25)
    axes.axhline(difference.mean, color=_COLOURS[1], linewidth=1.5)
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set(xlabel="cases, sorted", ylabel=f"difference in {name}")
    axes.set_title(told, fontsize=8, loc="right")
    more = f"higher in {sum(gain > 0 for gain in gains)} of {len(gains)} cases"
    return _finished(figure, len(gains), f"{name}: {difference.model} less {difference.other}", f"{told}, {more}")


def _drawing() -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 3.8), layout="constrained")
    axes = figure.add_subplot()
    axes.grid(color="#e3e8ec", linewidth=0.6)
    axes.set_axisbelow(True)
    return figure, axes


def _finished(figure: Figure, marks: int, title: str, told: str) -> Chart:
    import matplotlib as mpl

    content = io.BytesIO()
    if marks > _MOST_SVG_MARKS:
        figure.savefig(content, format="png", dpi=130)
        return Chart(title, f"{title}: {told}.", content.getvalue(), "png")
    # The same figures give the same bytes: no date, no random ids.
    with mpl.rc_context({"svg.hashsalt": title}):
        figure.savefig(content, format="svg", metadata={"Date": None, "Creator": None})
    return Chart(title, f"{title}: {told}.", content.getvalue(), "svg+xml")


def _legend(axes: Axes) -> None:
    for text in axes.legend(fontsize=8).get_texts():
        # A dollar sign in a name begins no formula.
        text.set_parse_math(False)


def _style(number: int) -> dict[str, Any]:
    return {"color": _COLOURS[number % len(_COLOURS)], "marker": _MARKS[number % len(_MARKS)], "markersize": 4}


def _stratum(part: Stratum) -> str:
    return f"{part.mean_dsc:.2f} at {part.low:.3g} to {part.high:.3g} {part.unit}"
