"""The domain check: does a scan show a head and neck? It runs before the network, which segments any input.

A few measurements of the body distinguish a head and neck from a leg, a chest, or an incomplete scan. Their usual
ranges were set on half of the 170 planning CTs of OpenKBP (Babier et al., Med Phys 48:5549, 2021), and are widened by
those of the model's training cases. A scan outside a range is flagged rather than rejected, since a clinician may have
reasons to segment it. A scan that cannot show a body at all is rejected.
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
# Thin parts of the skull, averaged over a coarse voxel, have lower HU than other bone.
_SKULL_HU = 150
_BRAIN_HU = (-20, 100)
_FEWEST_VOXELS, _SHORTEST_MM = 4, 20.0
# Smaller slices show the top of a head, or objects beside it.
_SLICE_CM2 = 30.0
# The position of less enclosed tissue than this is not meaningful.
_SKULL_ML = 20.0
_PERCENTILES = (2, 98)
# Other patients vary more than the training cases.
_BEYOND = 1.1
# 4-neighbours within a slice.
_IN_SLICE = ndimage.generate_binary_structure(2, 1)[:, :, None]


@dataclass(frozen=True)
class UsualRange:
    """The usual range of a measurement, and the reason given below and above it."""

    low: float
    high: float
    below: str
    above: str


USUAL: dict[str, UsualRange] = {
    "side_share": UsualRange(0, 0.1, "", "a side of the image cuts through the body"),
    "air_share": UsualRange(0.007, 0.2, "no airway in the body", "as much air in the body as in a chest"),
    "narrow_cm2": UsualRange(25, 320, "no slice as wide as a neck", "no slice as narrow as a head or a neck"),
    "bone_share": UsualRange(0.035, 0.2, "less bone than in a head and neck", "more bone than in a head and neck"),
    "height_mm": UsualRange(100, np.inf, "too short to show a head and neck", ""),
    "skull_cm2": UsualRange(5, np.inf, "no skull around a brain", ""),
    "skull_height": UsualRange(0.35, 1, "the head is not at the upper end: cut off, or upside down", ""),
    "metal_ml": UsualRange(0, 4, "", "much metal, whose streak artefacts hide the tissue beside it"),
}


def out_of_domain(prepared: Prepared, ranges: Mapping[str, Any] | None = None, where: object = None) -> tuple[str, ...]:
    """Check a scan, and return the reasons why it is unusual, one sentence each; empty if there are none.

    Args:
        prepared: the scan on the prepared grid.
        ranges: measurement -> (low, high) of the training cases, from `training_ranges`.
        where: name of the scan in errors.

    Raises:
        DataError: the scan has too few slices, or is too small, to show a body.
    """
    _require_a_body(prepared, where)
    reasons = []
    for name, found in body_measurements(prepared.body_hu).items():
        usual = USUAL[name]
        low, high = (ranges or {}).get(name, (usual.low, usual.high))
        low, high = min(low, usual.low), max(high, usual.high)
        if not low <= found <= high:
            if found < low:
                reason, bound = usual.below, f"at least {low:.3g}"
            else:
                reason, bound = usual.above, f"at most {high:.3g}"
            reasons.append(f"{reason} ({name} {found:.3g}, usual {bound})")
    return tuple(reasons)


def training_ranges(cases: Iterable[Volume]) -> dict[str, tuple[float, float]]:
    """Measurement -> (low, high) over prepared scans (HU): 2nd and 98th percentiles, widened by a tenth."""
    rows = [body_measurements(hu) for hu in cases]
    ranges = {}
    for name in USUAL:
        if found := [row[name] for row in rows if name in row]:
            low, high = np.percentile(found, _PERCENTILES)
            ranges[name] = (float(low) / _BEYOND, float(high) * _BEYOND)
    return ranges


def body_measurements(hu: Volume) -> dict[str, float]:
    """The measurements of `USUAL` for a prepared scan (HU, axes RAS), sampled about every 4 mm.

    `skull_height` is omitted if too little tissue is enclosed by bone.
    """
    steps = [max(1, round(_SAMPLED_MM / spacing)) for spacing in hu.spacing_mm]
    sampled = hu.array[:: steps[0], :: steps[1], :: steps[2]]
    i_mm, j_mm, k_mm = (spacing * step for spacing, step in zip(hu.spacing_mm, steps, strict=True))
    slice_cm2, voxel_ml = i_mm * j_mm / 100, i_mm * j_mm * k_mm / 1000
    body = np.asarray(cc3d.largest_k(sampled > _TISSUE_HU, k=1, connectivity=6)) > 0
    filled = filled_by_slice(body)
    areas_cm2 = filled.sum(axis=(0, 1)) * slice_cm2
    voxels = max(1, int(np.count_nonzero(filled)))
    found = {
        "side_share": _side_share(filled),
        "air_share": float(np.count_nonzero(filled & (sampled < _AIR_HU))) / voxels,
        "bone_share": float(np.count_nonzero(filled & (sampled > _BONE_HU))) / voxels,
        "height_mm": sampled.shape[2] * k_mm,
        "metal_ml": float(np.count_nonzero(sampled >= _METAL_HU)) * voxel_ml,
    }
    slices = areas_cm2[areas_cm2 > _SLICE_CM2]
    found["narrow_cm2"] = float(np.percentile(slices, 10)) if slices.size else 0.0
    brain_cm2 = _enclosed_by_bone(sampled).sum(axis=(0, 1)) * slice_cm2
    found["skull_cm2"] = float(brain_cm2.max())
    if brain_cm2.sum() * k_mm / 10 > _SKULL_ML:
        found["skull_height"] = float(np.average(np.arange(brain_cm2.size), weights=brain_cm2) / brain_cm2.size)
    return found


def _require_a_body(prepared: Prepared, where: object) -> None:
    voxels, grid = prepared.source_shape, prepared.body_hu
    sides_mm = [n * spacing for n, spacing in zip(grid.shape, grid.spacing_mm, strict=True)]
    if min(voxels) >= _FEWEST_VOXELS and min(sides_mm) >= _SHORTEST_MM:
        return
    raise DataError(
        "scan has too few slices, or is too small, to show a body",
        where=where,
        expected=f"{_FEWEST_VOXELS} voxels and {_SHORTEST_MM:g} mm of body or more on each axis",
        found=f"{'x'.join(map(str, voxels))} voxels, {' x '.join(f'{side:.0f}' for side in sides_mm)} mm",
        do="pass the full planning CT",
    )


def _side_share(filled: NDArray[np.bool_]) -> float:
    """The share of the body's length along which an image border cuts through it; the largest of four sides."""
    shares = []
    for axis in (0, 1):
        reach = max(1, int(np.count_nonzero(filled.any(axis=axis))))
        shares += [int(np.count_nonzero(np.take(filled, end, axis=axis))) / reach for end in (0, -1)]
    return max(shares)


def filled_by_slice(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Fill the holes of each slice (i, j) of a mask, by connected components, which is faster than by dilation."""
    labels, count = ndimage.label(~mask, np.pad(_IN_SLICE, ((0, 0), (0, 0), (1, 1))))
    outside = np.zeros(count + 1, dtype=bool)
    for edge in (labels[0], labels[-1], labels[:, 0], labels[:, -1]):
        outside[edge] = True
    outside[0] = False
    filled: NDArray[np.bool_] = ~outside[labels]
    return filled


def _enclosed_by_bone(hu: NDArray[np.int16]) -> NDArray[np.bool_]:
    """Soft tissue enclosed by bone within its slice; only a skull encloses square centimetres of it."""
    pad = 3
    bone = np.pad(hu > _SKULL_HU, ((pad, pad), (pad, pad), (0, 0)))
    closed = ndimage.binary_closing(bone, _IN_SLICE, iterations=2)
    inside = filled_by_slice(closed)[pad:-pad, pad:-pad]
    enclosed: NDArray[np.bool_] = ndimage.binary_opening(inside & (hu > _BRAIN_HU[0]) & (hu < _BRAIN_HU[1]), _IN_SLICE)
    return enclosed
