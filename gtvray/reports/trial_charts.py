"""Charts of a sweep: learning curves, settings in parallel coordinates, score against time and other objectives."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from gtvray.io import Picture
from gtvray.reports.drawing import COLOURS, LINE_COLOUR, encode_chart, new_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Curve = list[tuple[int, float]]
# Positions of values on their axis, 0 to 1, and the tick labels with their positions.
Scaled = tuple[list[float], list[tuple[float, str]]]

_MAX_CATEGORY_LABELS = 12


def curve_chart(name: str, curves: Mapping[str, Curve], best: Sequence[float]) -> Picture:
    """Draw a metric of each trial by epoch; stronger colours mean a higher best DSC.

    Args:
        name: name of the metric.
        curves: trial -> (epoch, value), the best trial first.
        best: best DSC of each trial, in the same order.
    """
    from matplotlib.ticker import MaxNLocator

    figure, axes = new_axes()
    colours = _add_colours(axes, best)
    for index, curve in reversed(list(enumerate(curves.values()))):
        epochs, values = [epoch for epoch, _ in curve], [value for _, value in curve]
        axes.plot(epochs, values, color=colours[index], linewidth=2 if index == 0 else 1, marker=".", markersize=3)
    axes.set(xlabel="epoch", ylabel=name)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    last = "; ".join(f"{trial} ends at {curve[-1][1]:.3g}" for trial, curve in list(curves.items())[:5] if curve)
    return encode_chart(figure, f"{name} by epoch", last, sum(map(len, curves.values())))


def parallel_chart(settings: Mapping[str, Sequence[str]], best: Sequence[float]) -> Picture:
    """Draw parallel coordinates: a line per trial through its settings, ending at its best DSC.

    Args:
        settings: key -> its value in each trial, the best trial first; at least one key.
        best: best DSC of each trial, in the same order.
    """
    columns = {**{key: _scale_setting(values) for key, values in settings.items()}, "best DSC": _scale(list(best))}
    figure, axes = new_axes()
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    colours = _add_colours(axes, best)
    for trial in reversed(range(len(best))):
        line = [positions[trial] for positions, _ in columns.values()]
        axes.plot(range(len(columns)), line, color=colours[trial], linewidth=2 if trial == 0 else 1)
    for column, (_, labels) in enumerate(columns.values()):
        axes.axvline(column, color=LINE_COLOUR, linewidth=0.8)
        for position, label in labels:
            text = axes.text(column + 0.02, position, label, fontsize=7, va="center", parse_math=False)
            text.set_bbox({"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.8})
    axes.set_xticks(range(len(columns)), [key.replace(".", ".\n", 1) for key in columns], fontsize=8)
    axes.set_yticks([])
    axes.set_xlim(-0.05, len(columns) - 0.7)
    first = ", ".join(f"{key} {values[0]}" for key, values in settings.items())
    return encode_chart(figure, "Settings of all trials", f"the best trial has {first}", len(best) * len(columns))


def front_chart(seconds: Sequence[float], best: Sequence[float]) -> Picture:
    """Draw best DSC against training time, with a line through the trials that no other beats in both."""
    front: list[tuple[float, float]] = []
    for cost, dsc in sorted(zip(seconds, best, strict=True), key=lambda trial: (trial[0], -trial[1])):
        if not front or dsc > front[-1][1]:
            front.append((cost, dsc))
    figure, axes = new_axes()
    axes.plot(seconds, best, linestyle="none", marker="o", color=COLOURS[0], markersize=4)
    axes.step([cost for cost, _ in front], [dsc for _, dsc in front], where="post", color=COLOURS[1], marker="D")
    axes.set(xlabel="seconds of training and selection", ylabel="best selection DSC")
    points = "; ".join(f"{dsc:.3f} in {cost:.0f} s" for cost, dsc in front)
    return encode_chart(figure, "Score against training time", points, len(best))


def objective_chart(
    name: str, front: Mapping[str, tuple[float, float]], others: Mapping[str, tuple[float, float]]
) -> Picture:
    """Draw the DSC of the completed trials against another objective, and mark those on the Pareto front.

    Args:
        name: name of the other objective.
        front: trial -> its value of that objective and its DSC, for the trials that none beats in all objectives.
        others: the same of the other trials.
    """
    figure, axes = new_axes()
    axes.plot(*_columns(others), linestyle="none", marker="o", color=COLOURS[0], markersize=4, label="dominated")
    axes.plot(*_columns(front), linestyle="none", marker="D", color=COLOURS[1], markersize=6, label="Pareto front")
    for trial, at in front.items():
        axes.annotate(trial, at, xytext=(4, 4), textcoords="offset points", fontsize=7, parse_math=False)
    axes.set(xlabel=name, ylabel="best selection DSC")
    axes.legend(loc="lower right")
    points = "; ".join(f"{trial}: DSC {dsc:.3f} at {cost:.4g}" for trial, (cost, dsc) in front.items())
    return encode_chart(figure, f"DSC against {name}, with the Pareto front", points, len(front) + len(others))


def _columns(points: Mapping[str, tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [cost for cost, _ in points.values()], [dsc for _, dsc in points.values()]


def _add_colours(axes: Axes, best: Sequence[float]) -> list[tuple[float, ...]]:
    """The colour of each trial by its best DSC; adds the colour scale beside the axes."""
    import matplotlib as mpl
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LinearSegmentedColormap, Normalize

    # The pale end is omitted. A dark page inverts the lightness, and the best trials still stand out.
    colormap = LinearSegmentedColormap.from_list("scores", mpl.colormaps["YlGnBu"](np.linspace(0.3, 1, 256)))
    # Equal scores would give a scale of length zero.
    scale = Normalize(min(best), max(best) + 1e-6)
    axes.figure.colorbar(ScalarMappable(scale, colormap), ax=axes, label="best DSC").outline.set_visible(False)
    return [colormap(float(scale(value))) for value in best]


def _scale_setting(values: Sequence[str]) -> Scaled:
    """Scale numbers by size, logarithmically over a decade or more; spread other values evenly, sorted by name."""
    try:
        numbers = [float(value) for value in values]
        wide = min(numbers) > 0 and max(numbers) >= 10 * min(numbers)
        positions, _ = _scale([math.log10(number) for number in numbers] if wide else numbers)
        return positions, _scale(numbers)[1]
    except ValueError:
        categories = sorted(set(values))
        at = {category: index / max(1, len(categories) - 1) for index, category in enumerate(categories)}
        labels = [(at[category], category[:20]) for category in categories[:_MAX_CATEGORY_LABELS]]
        return [at[value] for value in values], labels


def _scale(values: list[float]) -> Scaled:
    low, high = min(values), max(values)
    width = (high - low) or 1.0
    return [(value - low) / width for value in values], [(0.0, f"{low:.3g}"), (1.0, f"{high:.3g}")]
