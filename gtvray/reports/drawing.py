"""A chart from first axes to the file a page holds: one look, the same bytes for the same figures."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, told apart with colour-blind eyes too, and by their marks in black and white.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000")
_MARKS = "osD^v<>"
_MOST_SVG_MARKS = 500


@dataclass(frozen=True)
class Chart:
    """A drawing.

    Attributes:
        title: what it is of.
        alt: what it shows, in words, for those who do not see it.
        content: the file.
        kind: "svg+xml", or "png" where there are so many marks that it is smaller.
    """

    title: str
    alt: str
    content: bytes
    kind: str


def new_axes() -> tuple[Figure, Axes]:
    """Empty axes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 3.8), layout="constrained")
    axes = figure.add_subplot()
    axes.grid(color="#e3e8ec", linewidth=0.6)
    axes.set_axisbelow(True)
    return figure, axes


def finished(figure: Figure, marks: int, title: str, told: str) -> Chart:
    """The chart, once drawn.

    Args:
        figure: drawn on.
        marks: how many points or bars there are.
        title: what it is of.
        told: what it shows, in words.
    """
    import matplotlib as mpl

    content = io.BytesIO()
    if marks > _MOST_SVG_MARKS:
        figure.savefig(content, format="png", dpi=130)
        return Chart(title, f"{title}: {told}.", content.getvalue(), "png")
    # No date, no random ids.
    with mpl.rc_context({"svg.hashsalt": title}):
        figure.savefig(content, format="svg", metadata={"Date": None, "Creator": None})
    return Chart(title, f"{title}: {told}.", content.getvalue(), "svg+xml")


def add_legend(figure: Figure) -> None:
    """Name what has a label, above the axes: within them matplotlib searches for a place, and warns if that is slow."""
    for text in figure.legend(loc="outside upper left", ncols=3, fontsize=8, frameon=False).get_texts():
        # A dollar sign in a name begins no formula.
        text.set_parse_math(False)
        text.set_text(drawable(text.get_text()))


def drawable(text: str) -> str:
    """A text with every character that matplotlib's font lacks written as its code; it would be drawn as a box."""
    from matplotlib.font_manager import FontProperties, findfont, get_font

    font = get_font(findfont(FontProperties()))
    return "".join(
        character if font.get_char_index(ord(character)) else character.encode("ascii", "backslashreplace").decode()
        for character in text
    )


def style(number: int) -> dict[str, Any]:
    """Colour and mark of the models, by their number."""
    return {"color": COLOURS[number % len(COLOURS)], "marker": _MARKS[number % len(_MARKS)], "markersize": 4}
