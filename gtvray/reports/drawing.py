"""Common style and encoding of charts: the same values always give the same bytes."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

from gtvray.io import Picture

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# The palette of Okabe and Ito, distinguishable with colour-blindness; markers distinguish series in greyscale.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000")
LINE_COLOUR = "#51606c"
_MARKERS = "osD^v<>"
_MAX_SVG_MARKS = 500


def new_axes() -> tuple[Figure, Axes]:
    """Create a figure with empty axes in the common style."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 3.8), layout="constrained")
    axes = figure.add_subplot()
    axes.grid(color="#e3e8ec", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#b4bfc8")
    axes.tick_params(color="#b4bfc8", labelsize=9)
    return figure, axes


def encode_chart(figure: Figure, title: str, description: str, marks: int) -> Picture:
    """Encode a drawn figure as SVG, or as PNG where so many marks would make the SVG larger.

    Args:
        figure: the drawn figure.
        title: the caption.
        description: what the chart shows, in words; part of the alternative text.
        marks: number of points, bars and lines in it.
    """
    import matplotlib as mpl

    content, alt = io.BytesIO(), f"{title}: {description}."
    if marks > _MAX_SVG_MARKS:
        figure.savefig(content, format="png", dpi=130)
        return Picture(content.getvalue(), "png", alt, title)
    # Without a date and random ids, the bytes depend on the values alone.
    with mpl.rc_context({"svg.hashsalt": title}):
        figure.savefig(content, format="svg", metadata={"Date": None, "Creator": None})
    return Picture(content.getvalue(), "svg+xml", alt, title)


def add_legend(figure: Figure) -> None:
    """Add a legend above the axes; searching for free space within them is slow, and matplotlib warns about it."""
    for text in figure.legend(loc="outside upper left", ncols=3, fontsize=8, frameon=False).get_texts():
        # A dollar sign in a name must not start a formula.
        text.set_parse_math(False)
        text.set_text(drawable(text.get_text()))


def drawable(text: str) -> str:
    """Replace characters that matplotlib's font lacks by their escape codes; they would be drawn as boxes."""
    from matplotlib.font_manager import FontProperties, findfont, get_font

    font = get_font(findfont(FontProperties()))
    return "".join(
        character if font.get_char_index(ord(character)) else character.encode("ascii", "backslashreplace").decode()
        for character in text
    )


def series_style(index: int) -> dict[str, Any]:
    """Colour and marker of a series, as keyword arguments of `Axes.plot`."""
    return {"color": COLOURS[index % len(COLOURS)], "marker": _MARKERS[index % len(_MARKERS)], "markersize": 4}
