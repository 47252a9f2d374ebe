"""The charts of a sweep: learning curves, searched settings against what came of them, score against cost."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from gtvray.reports.drawing import COLOURS, Chart, finished, new_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Curve = list[tuple[int, float]]

_MOST_NAMED_VALUES = 12


def curve_chart(name: str, curves: Mapping[str, Curve], best: Sequence[float]) -> Chart:
    """A figure of each trial over its epochs; brighter is better.

    Args:
        name: of the figure.
        curves: trial -> (epoch, value), the best trial first.
        best: the best DSC of each, in the same order.
    """
    figure, axes = new_axes()
    colour = _colours(axes, best)
    for number, curve in reversed(list(enumerate(curves.values()))):
        epochs, values = [epoch for epoch, _ in curve], [value for _, value in curve]
        axes.plot(epochs, values, color=colour[number], linewidth=2 if number == 0 else 1, marker=".", markersize=3)
    axes.set(xlabel="epoch", ylabel=name)
    last = "; ".join(f"{trial} ends at {curve[-1][1]:.3g}" for trial, curve in list(curves.items())[:5] if curve)
    return finished(figure, sum(map(len, curves.values())), f"{name} by epoch", last)


def parallel_chart(settings: Mapping[str, Sequence[str]], best: Sequence[float]) -> Chart:
    """Parallel coordinates: a line a trial through its settings, the last axis its best DSC.

    Args:
        settings: key -> its value in each trial, the best first; at least one.
        best: the best DSC of each trial.
    """
    columns = {**{key: _heights(values) for key, values in settings.items()}, "best DSC": _scaled(list(best))}
    figure, axes = new_axes()
    colour = _colours(axes, best)
    for number in reversed(range(len(best))):
        line = [heights[number] for heights, _ in columns.values()]
        axes.plot(range(len(columns)), line, color=colour[number], linewidth=2 if number == 0 else 1)
    for place, (_, labels) in enumerate(columns.values()):
        axes.axvline(place, color="#44525e", linewidth=0.8)
        for height, label in labels:
            axes.text(place + 0.02, height, label, fontsize=7, va="center", parse_math=False)
    axes.set_xticks(range(len(columns)), [key.replace(".", ".\n", 1) for key in columns], fontsize=8)
    axes.set_yticks([])
    axes.set_xlim(-0.05, len(columns) - 0.7)
    first = ", ".join(f"{key} {values[0]}" for key, values in settings.items())
    return finished(figure, len(best) * len(columns), "Settings of all trials", f"the best trial has {first}")


def front_chart(seconds: Sequence[float], best: Sequence[float]) -> Chart:
    """Best DSC against the seconds a trial took, with the Pareto front: trials that none beats in both."""
    front: list[tuple[float, float]] = []
    for cost, dsc in sorted(zip(seconds, best, strict=True), key=lambda trial: (trial[0], -trial[1])):
        if not front or dsc > front[-1][1]:
            front.append((cost, dsc))
    figure, axes = new_axes()
    axes.plot(seconds, best, linestyle="none", marker="o", color=COLOURS[0], markersize=4)
    axes.step([cost for cost, _ in front], [dsc for _, dsc in front], where="post", color=COLOURS[1], marker="D")
    axes.set(xlabel="seconds of training and selection", ylabel="best selection DSC")
    told = "; ".join(f"{dsc:.3f} in {cost:.0f} s" for cost, dsc in front)
    return finished(figure, len(best), "Score against cost, with the Pareto front", told)


def _colours(axes: Axes, best: Sequence[float]) -> list[tuple[float, ...]]:
    """A colour a trial, by its best DSC, with the scale beside the axes."""
    import matplotlib as mpl
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    # Without the colours' yellow end, which is hard to see on white; never a scale without length.
    shades, reach = mpl.colormaps["viridis"], 1.15 * (max(best) - min(best)) + 1e-6
    scale = Normalize(min(best), min(best) + reach)
    axes.figure.colorbar(ScalarMappable(scale, shades), ax=axes, label="best DSC")
    return [shades((value - min(best)) / reach) for value in best]


def _heights(values: Sequence[str]) -> tuple[list[float], list[tuple[float, str]]]:
    """Where values stand on their axis, 0 to 1, and what is written there: numbers by size, else a place each."""
    try:
        numbers = [float(value) for value in values]
        # Learning rates and the like lie decades apart.
        wide = min(numbers) > 0 and max(numbers) >= 10 * min(numbers)
        heights, _ = _scaled([math.log10(number) for number in numbers] if wide else numbers)
        return heights, _scaled(numbers)[1]
    except ValueError:
        kinds = sorted(set(values))
        at = {kind: number / max(1, len(kinds) - 1) for number, kind in enumerate(kinds)}
        return [at[value] for value in values], [(at[kind], kind[:20]) for kind in kinds[:_MOST_NAMED_VALUES]]


def _scaled(values: list[float]) -> tuple[list[float], list[tuple[float, str]]]:
    low, high = min(values), max(values)
    width = (high - low) or 1.0
    return [(value - low) / width for value in values], [(0.0, f"{low:.3g}"), (1.0, f"{high:.3g}")]
