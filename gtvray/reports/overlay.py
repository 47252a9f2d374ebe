"""The pictures of an evaluation: a case's slices with the outlines of reference and prediction."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np

from gtvray import NOTICE
from gtvray.datasets import REFERENCE_COLOUR, WINDOW_HU, Section, sections
from gtvray.errors import GeometryError
from gtvray.geometry import Volume
from gtvray.io import atomic_path
from gtvray.reports.drawing import drawable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_PREDICTION_COLOUR = "#ff3030"


def render_overlay(
    path: str | os.PathLike[str], image: Volume, reference: Volume | None, prediction: Volume | None, title: str
) -> None:
    """Write a PNG of the axial, coronal and sagittal slices through a case's mask, with the outlines of its masks.

    The slices are those through the middle of the reference, else of the prediction, else of the grid; shown as
    radiologists do, patient left on the viewer's right, at a window of -160 to 240 HU.

    Args:
        path: the PNG, written atomically.
        image: CT in HU.
        reference: mask on the image's grid, outlined in green.
        prediction: mask on the image's grid, outlined in red.
        title: a line above the slices; no patient identifiers.

    Raises:
        GeometryError: a mask is not on the image's grid.
    """
    for name, mask in (("reference", reference), ("prediction", prediction)):
        if mask is not None and not image.same_grid(mask):
            raise GeometryError(f"{name} is not on the image's grid", expected=image.shape, found=mask.shape)
    figure = _overlay_figure(image, reference, prediction, title)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=100)


def _overlay_figure(image: Volume, reference: Volume | None, prediction: Volume | None, title: str) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    outlined = {
        name: (mask, colour)
        for name, mask, colour in (
            ("reference", reference, REFERENCE_COLOUR),
            ("prediction", prediction, _PREDICTION_COLOUR),
        )
        if mask is not None
    }
    colours = {name: colour for name, (_, colour) in outlined.items()}
    figure = Figure(figsize=(12, 4.8), facecolor="black", layout="constrained")
    FigureCanvasAgg(figure)
    views = sections(image, [mask for mask, _ in outlined.values()])
    for axes, view in zip(figure.subplots(1, 3), views, strict=True):
        _draw_view(axes, view, list(colours.values()))
    _legend(figure.axes[0], colours)
    # A dollar sign in a case's name begins no formula.
    figure.suptitle(drawable(title), color="white", fontsize=11, parse_math=False)
    figure.supxlabel(NOTICE, color="gray", fontsize=8)
    return figure


def _draw_view(axes: Axes, view: Section, colours: list[str]) -> None:
    axes.imshow(
        view.hu,
        cmap="gray",
        vmin=WINDOW_HU[0],
        vmax=WINDOW_HU[1],
        origin="lower" if view.rows_up else "upper",
        aspect=view.pixel_mm[0] / view.pixel_mm[1],
    )
    for section, colour in zip(view.masks, colours, strict=True):
        if section.any():
            # The border lets an outline close where the mask meets the edge of the grid.
            rows, columns = (np.arange(-1, size + 1) for size in section.shape)
            axes.contour(columns, rows, np.pad(section, 1), levels=[0.5], colors=[colour], linewidths=1.2)
    places = ((0.02, 0.5), (0.98, 0.5), (0.5, 0.98), (0.5, 0.02))
    anchors = (("left", "center"), ("right", "center"), ("center", "top"), ("center", "bottom"))
    for letter, place, (horizontal, vertical) in zip(view.letters, places, anchors, strict=True):
        axes.text(
            *place, letter, transform=axes.transAxes, color="yellow", ha=horizontal, va=vertical, fontweight="bold"
        )
    axes.set_title(view.name, color="white", fontsize=9)
    axes.set_axis_off()


def _legend(axes: Axes, colours: dict[str, str]) -> None:
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], color=colour, label=name) for name, colour in colours.items()]
    if handles:
        axes.legend(handles=handles, loc="lower left", fontsize=8, facecolor="black", labelcolor="white")
