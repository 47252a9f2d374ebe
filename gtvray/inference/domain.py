"""Does a scan look like what the model was made for? Asked before the network, which would answer anything.

A few figures of the body tell a head and neck from a leg, a chest, or a part of one. Their usual ranges were set on
half of the 170 planning CTs of OpenKBP (Babier et al., Med Phys 48:5549, 2021); what the model's own training cases had
is usual as well. A scan outside is flagged, not refused: a clinician may have reasons. What cannot be a scan of a body
at all is refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import cc3d
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from gtvray.errors import DataError
from gtvray.geometry import Volume

if TYPE_CHECKING:
    from gtvray.preprocessing import Prepared

_SAMPLED_MM = 4.0
_TISSUE_HU, _AIR_HU, _BONE_HU, _METAL_HU = -400, -500, 250, 3000
# A skull's thin parts are darker than bone elsewhere, once averaged over a coarse voxel.
_SKULL_HU = 150
_BRAIN_HU = (-20, 100)
_FEWEST_VOXELS, _SHORTEST_MM = 4, 20.0
# Smaller slices are the top of a head, or what lies beside it.
_SLICE_CM2 = 30.0
# Less enclosed tissue than this has no place that could be told.
_SKULL_ML = 20.0
_PERCENTILES = (2, 98)
# Other patients are like the training's, and not the same.
_BEYOND = 1.1
# 4-neighbours within a slice.
_IN_SLICE = ndimage.generate_binary_structure(2, 1)[:, :, None]


@dataclass(frozen=True)
class Usual:
    """A figure's usual range, and what it means to lie outside."""

    low: float
    high: float
    below: str
    above: str


USUAL: dict[str, Usual] = {
    "side_share": Usual(0, 0.1, "", "a side of the image cuts through the body"),
    "air_share": Usual(0.007, 0.2, "no airway in the body", "as much air in the body as a chest has"),
    "narrow_cm2": Usual(25, 320, "no slice as wide as a neck", "no slice as narrow as a head or a neck"),
    "bone_share": Usual(0.035, 0.2, "less bone than a head and neck have", "more bone than a head and neck have"),
    "height_mm": Usual(100, np.inf, "too short to show a head and neck", ""),
    "skull_cm2": Usual(5, np.inf, "no skull around a brain", ""),
    "skull_height": Usual(0.35, 1, "the head is not at the upper end: cut off, or upside down", ""),
    "metal_ml": Usual(0, 4, "", "much metal, whose streaks hide what is beside it"),
}


def out_of_domain(prepared: Prepared, ranges: Mapping[str, Any] | None = None, where: object = None) -> tuple[str, ...]:
    """Why a scan is unlike what the model was made for, a sentence each; empty if nothing speaks for that.

    Args:
        prepared: the scan on the prepared grid.
        ranges: figure -> (low, high) of the training cases, as `training_ranges` gives them.
        where: what to name in an error.

    Raises:
        DataError: it is no scan of a body: too few slices, or too small.
    """
    _require_a_body(prepared, where)
    reasons = []
    for name, found in body_figures(prepared.body_hu).items():
        usual = USUAL[name]
        low, high = (ranges or {}).get(name, (usual.low, usual.high))
        low, high = min(low, usual.low), max(high, usual.high)
        if not low <= found <= high:
            said, bound = (usual.below, f"at least {low:.3g}") if found < low else (usual.above, f"at most {high:.3g}")
            reasons.append(f"{said} ({name} {found:.3g}, usual {bound})")
    return tuple(reasons)


def training_ranges(cases: Iterable[Volume]) -> dict[str, tuple[float, float]]:
    """Figure -> (low, high) over prepared scans (HU): 2nd and 98th percentiles and a tenth beyond."""
    rows = [body_figures(hu) for hu in cases]
    ranges = {}
    for name in USUAL:
        if found := [row[name] for row in rows if name in row]:
            low, high = np.percentile(found, _PERCENTILES)
            ranges[name] = (float(low) / _BEYOND, float(high) * _BEYOND)
    return ranges


def body_figures(hu: Volume) -> dict[str, float]:
    """The figures of `USUAL` for a prepared scan (HU, axes RAS), sampled about every 4 mm; without those it lacks."""
    steps = [max(1, round(_SAMPLED_MM / spacing)) for spacing in hu.spacing_mm]
    sampled = hu.array[:: steps[0], :: steps[1], :: steps[2]]
    i_mm, j_mm, k_mm = (spacing * step for spacing, step in zip(hu.spacing_mm, steps, strict=True))
    slice_cm2, voxel_ml = i_mm * j_mm / 100, i_mm * j_mm * k_mm / 1000
    body = np.asarray(cc3d.largest_k(sampled > _TISSUE_HU, k=1, connectivity=6)) > 0
    filled = filled_by_slice(body)
    areas_cm2 = filled.sum(axis=(0, 1)) * slice_cm2
    whole = max(1, int(np.count_nonzero(filled)))
    figures = {
        "side_share": _side_share(filled),
        "air_share": float(np.count_nonzero(filled & (sampled < _AIR_HU))) / whole,
        "bone_share": float(np.count_nonzero(filled & (sampled > _BONE_HU))) / whole,
        "height_mm": sampled.shape[2] * k_mm,
        "metal_ml": float(np.count_nonzero(sampled >= _METAL_HU)) * voxel_ml,
    }
    slices = areas_cm2[areas_cm2 > _SLICE_CM2]
    figures["narrow_cm2"] = float(np.percentile(slices, 10)) if slices.size else 0.0
    brain_cm2 = _enclosed_by_bone(sampled).sum(axis=(0, 1)) * slice_cm2
    figures["skull_cm2"] = float(brain_cm2.max())
    if brain_cm2.sum() * k_mm / 10 > _SKULL_ML:
        figures["skull_height"] = float(np.average(np.arange(brain_cm2.size), weights=brain_cm2) / brain_cm2.size)
    return figures


def _require_a_body(prepared: Prepared, where: object) -> None:
    voxels, grid = prepared.source_shape, prepared.body_hu
    sides_mm = [n * spacing for n, spacing in zip(grid.shape, grid.spacing_mm, strict=True)]
    if min(voxels) >= _FEWEST_VOXELS and min(sides_mm) >= _SHORTEST_MM:
        return
    raise DataError(
        "not a scan of a body: too few slices, or too small",
        where=where,
        expected=f"{_FEWEST_VOXELS} voxels and {_SHORTEST_MM:g} mm of body or more on each axis",
        found=f"{'x'.join(map(str, voxels))} voxels, {' x '.join(f'{side:.0f}' for side in sides_mm)} mm",
        do="give the whole planning CT",
    )


def _side_share(filled: NDArray[np.bool_]) -> float:
    """The largest share of the body's length, of four sides, on which that side of the image cuts through it."""
    shares = []
    for axis in (0, 1):
        reach = max(1, int(np.count_nonzero(filled.any(axis=axis))))
        shares += [int(np.count_nonzero(np.take(filled, end, axis=axis))) / reach for end in (0, -1)]
    return max(shares)


def filled_by_slice(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """A mask with the holes of each slice (i, j) filled; a component at a time, not a rim of voxels at a time."""
    labels, count = ndimage.label(~mask, np.pad(_IN_SLICE, ((0, 0), (0, 0), (1, 1))))
    outside = np.zeros(count + 1, dtype=bool)
    for edge in (labels[0], labels[-1], labels[:, 0], labels[:, -1]):
        outside[edge] = True
    outside[0] = False
    filled: NDArray[np.bool_] = ~outside[labels]
    return filled


def _enclosed_by_bone(hu: NDArray[np.int16]) -> NDArray[np.bool_]:
    """Soft tissue with bone all around it within its slice, as only a skull has it by the square centimetre."""
    pad = 3
    bone = np.pad(hu > _SKULL_HU, ((pad, pad), (pad, pad), (0, 0)))
    closed = ndimage.binary_closing(bone, _IN_SLICE, iterations=2)
    inside = filled_by_slice(closed)[pad:-pad, pad:-pad]
    enclosed: NDArray[np.bool_] = ndimage.binary_opening(inside & (hu > _BRAIN_HU[0]) & (hu < _BRAIN_HU[1]), _IN_SLICE)
    return enclosed
