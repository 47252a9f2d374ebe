"""Overlays: slices of a case with the outlines of reference and prediction."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from gtvray import NOTICE
from gtvray.datasets import REFERENCE_COLOUR, WINDOW_HU, Section, sections
from gtvray.errors import GeometryError
from gtvray.geometry import Box, Volume
from gtvray.io import atomic_path
from gtvray.reports.drawing import drawable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_PREDICTION_COLOUR = "#ff3030"
_LETTER_COLOUR = "#ffe14d"
# Positions of direction letters at the left, right, top and bottom edge, in axes coordinates, with their alignment.
_EDGES = (
    ((0.02, 0.5), "left", "center"),
    ((0.98, 0.5), "right", "center"),
    ((0.5, 0.98), "center", "top"),
    ((0.5, 0.02), "center", "bottom"),
)


def render_overlay(
    path: str | os.PathLike[str],
    image: Volume,
    reference: Volume | None,
    prediction: Volume | None,
    title: str,
    *,
    field_mm: float | None = None,
) -> None:
    """Write a PNG of the axial, coronal and sagittal slices through a case's mask, with the outlines of its masks.

    The slices pass through the centre of the reference, or without one, of the prediction or the grid. Display is
    radiological, patient left on the viewer's right, at a window of -160 to 240 HU.

    Args:
        path: the PNG, written atomically.
        image: CT in HU.
        reference: mask on the image's grid, outlined in green.
        prediction: mask on the image's grid, outlined in red.
        title: a line above the slices; no patient identifiers.
        field_mm: side of the square field of view around the masks; None shows the body.

    Raises:
        GeometryError: a mask is not on the image's grid.
    """
    for name, mask in (("reference", reference), ("prediction", prediction)):
        if mask is not None and not image.same_grid(mask):
            raise GeometryError(
                f"{name} is not on the image's grid",
                expected=image.shape,
                found=mask.shape,
                do="pass masks on the scan's own grid",
            )
    figure = _overlay_figure(image, reference, prediction, title, field_mm)
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=100)
    with Image.open(content) as picture, atomic_path(path) as temporary:
        # Greys and a few colours fit a palette, which makes the file a third as large.
        picture.convert("RGB").quantize(256).save(temporary, format="PNG", optimize=True)


def _overlay_figure(
    image: Volume, reference: Volume | None, prediction: Volume | None, title: str, field_mm: float | None = None
) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    given = (("reference", reference, REFERENCE_COLOUR), ("prediction", prediction, _PREDICTION_COLOUR))
    outlined = {name: (mask, colour) for name, mask, colour in given if mask is not None}
    colours = {name: colour for name, (_, colour) in outlined.items()}
    figure = Figure(figsize=(12, 4.8), facecolor="black", layout="constrained")
    FigureCanvasAgg(figure)
    views = sections(image, [mask for mask, _ in outlined.values()])
    for axes, view in zip(figure.subplots(1, 3), views, strict=True):
        _draw_view(axes, view, list(colours.values()))
        if field_mm is not None:
            _limit_field(axes, view, field_mm)
    # A dollar sign in the name of a case must not start a formula.
    figure.suptitle(drawable(title), x=0.01, ha="left", color="white", fontsize=14, parse_math=False)
    figure.supxlabel(NOTICE, color="#a0a0a0", fontsize=10)
    _add_legend(figure, colours)
    return figure


def _draw_view(axes: Axes, view: Section, colours: list[str]) -> None:
    axes.imshow(
        view.hu,
        cmap="gray",
        vmin=WINDOW_HU[0],
        vmax=WINDOW_HU[1],
        origin="lower" if view.rows_up else "upper",
        aspect=view.pixel_mm[0] / view.pixel_mm[1],
        interpolation="bilinear",
    )
    for section, colour in zip(view.masks, colours, strict=True):
        if section.any():
            # The border closes an outline where the mask touches the edge of the grid.
            rows, columns = (np.arange(-1, size + 1) for size in section.shape)
            axes.contour(columns, rows, np.pad(section, 1), levels=[0.5], colors=[colour], linewidths=1.6)
    for letter, (position, horizontal, vertical) in zip(view.letters, _EDGES, strict=True):
        axes.text(
            *position,
            letter,
            transform=axes.transAxes,
            color=_LETTER_COLOUR,
            ha=horizontal,
            va=vertical,
            fontsize=12,
            fontweight="bold",
        )
    axes.set_title(view.name, color="white", fontsize=12)
    axes.set_axis_off()


def _limit_field(axes: Axes, view: Section, field_mm: float) -> None:
    """Limit the axes to a square around the masks, or around the slice's centre without any."""
    foreground = np.logical_or.reduce([*view.masks]) if view.masks else np.zeros(view.hu.shape, dtype=bool)
    box = Box.around(foreground[..., None]) or Box.whole((*view.hu.shape, 1))
    row, column = ((box.start_ijk[axis] + box.stop_ijk[axis] - 1) / 2 for axis in range(2))
    half_rows, half_columns = (field_mm / pixel_mm / 2 for pixel_mm in view.pixel_mm)
    axes.set_xlim(column - half_columns, column + half_columns)
    bottom, top = row - half_rows, row + half_rows
    axes.set_ylim((bottom, top) if view.rows_up else (top, bottom))


def _add_legend(figure: Figure, colours: Mapping[str, str]) -> None:
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], color=colour, linewidth=2, label=name) for name, colour in colours.items()]
    if handles:
        figure.legend(
            handles=handles,
            loc="upper right",
            bbox_to_anchor=(0.992, 1.0),
            ncols=len(handles),
            fontsize=12,
            frameon=False,
            labelcolor="white",
            borderaxespad=0.1,
            borderpad=0.2,
        )
