"""What people read after an evaluation: a table, a summary and pictures."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from gtvray import NOTICE
from gtvray.errors import GeometryError, InputError
from gtvray.evaluation.metrics import CaseScore
from gtvray.evaluation.statistics import aggregated_dsc, bootstrap_mean_interval
from gtvray.geometry import Box, Volume
from gtvray.io import atomic_path

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

HD95_DEFINITION = "max of the two directed 95th percentiles between surface voxels, mm"
_WINDOW_HU = (-160.0, 240.0)
_BODY_ABOVE_HU = -500.0
_MARGIN_IJK = (3, 3, 3)
_REFERENCE_COLOUR, _PREDICTION_COLOUR = "#20e040", "#ff3030"
_FEWEST_FOR_INTERVAL = 3
_SUMMARY_SEED = 0
# Display axes: name, (across, up or down) array axes of an LPS volume, whether rows run upwards, letters at the
# left, right, top and bottom edge. Patient left is on the viewer's right; anterior, and superior, are up.
_VIEWS = (
    ("axial", (0, 1), False, "RLAP"),
    ("coronal", (0, 2), True, "RLSI"),
    ("sagittal", (1, 2), True, "APSI"),
)


def summarise(scores: Sequence[CaseScore]) -> dict[str, Any]:
    """Mean, median and 95 % interval of each score, number of missed cases and aggregated DSC; ready for JSON.

    With fewer than three cases an interval is None. NSD is given apart for each tolerance that occurs.

    Raises:
        InputError: no scores.
    """
    if not scores:
        raise InputError("no scores to summarise")
    tolerances_mm = sorted({score.nsd_tolerance_mm for score in scores})
    return {
        "cases": len(scores),
        "missed": sum(score.missed for score in scores),
        "dsc": _spread([score.dsc for score in scores]),
        "aggregated_dsc": aggregated_dsc(scores),
        "hd95_mm": _spread([score.hd95_mm for score in scores]),
        "hd95_definition": HD95_DEFINITION,
        "nsd": [
            {"tolerance_mm": tolerance} | _spread([s.nsd for s in scores if s.nsd_tolerance_mm == tolerance])
            for tolerance in tolerances_mm
        ],
    }


def _spread(values: list[float]) -> dict[str, Any]:
    enough = len(values) >= _FEWEST_FOR_INTERVAL
    interval = bootstrap_mean_interval(values, seed=_SUMMARY_SEED) if enough else None
    return {
        "mean": float(np.mean(values)),
        "median": float(np.median(values)),
        "interval": [interval.low, interval.high] if interval else None,
        "n": len(values),
    }


def scores_table(scores: Sequence[CaseScore]) -> str:
    """A Markdown table of the cases, the worst DSC first."""
    lines = [
        "| case | DSC | HD95 (mm) | NSD | reference (ml) | prediction (ml) | missed |",
        "| --- | ---: | ---: | ---: | ---: | ---: | --- |",
    ]
    for score in sorted(scores, key=lambda one: (one.dsc, one.case_id)):
        case_id = score.case_id.replace("|", "\\|")
        lines.append(
            f"| {case_id} | {score.dsc:.4f} | {score.hd95_mm:.2f} | {score.nsd:.4f} at {score.nsd_tolerance_mm:g} mm "
            f"| {score.volume_reference_ml:.2f} | {score.volume_prediction_ml:.2f} | {'yes' if score.missed else ''} |"
        )
    return "\n".join([*lines, "", f"HD95: {HD95_DEFINITION}."]) + "\n"


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

    box = _shown_box(image, [mask for mask in (reference, prediction) if mask is not None])
    shown = image.cropped(box).reoriented("LPS")
    outlines = [
        (mask.cropped(box).reoriented("LPS").array != 0, colour, name)
        for mask, colour, name in (
            (reference, _REFERENCE_COLOUR, "reference"),
            (prediction, _PREDICTION_COLOUR, "prediction"),
        )
        if mask is not None
    ]
    centre = _middle([mask for mask, _, _ in outlines], shown.shape)
    figure = Figure(figsize=(12, 4.8), facecolor="black", layout="constrained")
    FigureCanvasAgg(figure)
    for axes, view in zip(figure.subplots(1, 3), _VIEWS, strict=True):
        _draw_view(axes, shown, outlines, centre, view)
    _legend(figure.axes[0], outlines)
    figure.suptitle(title, color="white", fontsize=11)
    figure.supxlabel(NOTICE, color="gray", fontsize=8)
    return figure


def _shown_box(image: Volume, masks: list[Volume]) -> Box:
    """What is worth showing: body and masks, without the air around them."""
    of_interest = np.logical_or.reduce([image.array > _BODY_ABOVE_HU, *(mask.array != 0 for mask in masks)])
    box = Box.around(of_interest)
    return Box.whole(image.shape) if box is None else box.grown(_MARGIN_IJK, image.shape)


def _middle(masks: list[npt.NDArray[np.bool_]], shape: tuple[int, int, int]) -> list[int]:
    """Voxel whose three slices each cut the first mask that is not empty: its median along each axis."""
    for mask in masks:
        if mask.any():
            counts = [mask.sum(axis=tuple(other for other in range(3) if other != axis)) for axis in range(3)]
            return [int(np.searchsorted(np.cumsum(count), count.sum() / 2)) for count in counts]
    return [size // 2 for size in shape]


def _draw_view(
    axes: Axes,
    shown: Volume,
    outlines: list[tuple[npt.NDArray[np.bool_], str, str]],
    centre: list[int],
    view: tuple[str, tuple[int, int], bool, str],
) -> None:
    name, (across, along), rows_up, letters = view
    normal = 3 - across - along

    def cut(array: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
        section: npt.NDArray[np.generic] = np.take(array, centre[normal], axis=normal).T
        return section

    axes.imshow(
        cut(shown.array),
        cmap="gray",
        vmin=_WINDOW_HU[0],
        vmax=_WINDOW_HU[1],
        origin="lower" if rows_up else "upper",
        aspect=shown.spacing_mm[along] / shown.spacing_mm[across],
    )
    for mask, colour, _ in outlines:
        section = cut(mask)
        if section.any():
            # The border lets an outline close where the mask meets the edge of the grid.
            rows, columns = (np.arange(-1, size + 1) for size in section.shape)
            axes.contour(columns, rows, np.pad(section, 1), levels=[0.5], colors=[colour], linewidths=1.2)
    places = ((0.02, 0.5), (0.98, 0.5), (0.5, 0.98), (0.5, 0.02))
    anchors = (("left", "center"), ("right", "center"), ("center", "top"), ("center", "bottom"))
    for letter, place, (horizontal, vertical) in zip(letters, places, anchors, strict=True):
        axes.text(
            *place, letter, transform=axes.transAxes, color="yellow", ha=horizontal, va=vertical, fontweight="bold"
        )
    axes.set_title(name, color="white", fontsize=9)
    axes.set_axis_off()


def _legend(axes: Axes, outlines: list[tuple[npt.NDArray[np.bool_], str, str]]) -> None:
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], color=colour, label=name) for _, colour, name in outlines]
    if handles:
        axes.legend(handles=handles, loc="lower left", fontsize=8, facecolor="black", labelcolor="white")
