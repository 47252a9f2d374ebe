"""Checks of a scan: are these Hounsfield units of a body, all slices there, on a plausible grid?"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from gtvray.datasets.checks.body import AXES, TISSUE_ABOVE_HU, Sketch
from gtvray.datasets.checks.findings import Finding, finding
from gtvray.errors import DataError
from gtvray.geometry import Volume, is_sheared
from gtvray.preprocessing import check_hu

# Planning CTs have pixels of 0.5-2.5 mm and slices of 1-5 mm; OpenKBP, downsampled, has pixels of 5.4 mm. Beyond these,
# a header in other units is likelier than a scanner.
_PIXEL_MM, _SLICE_MM = (0.2, 6.0), (0.3, 8.0)
# A CT's pixels are square by construction; headers round to a thousandth.
_SQUARE_TOLERANCE = 0.01
# Across: a newborn's head is 80 mm wide, and no bore lets more than 850 mm through.
_BODY_ACROSS_MM = (60.0, 850.0)
# Fat peaks about -100 HU, muscle and brain about 20-60; contrast, and water for tissue, stay within.
_SOFT_PEAK_HU = (-200, 200)
# Of what is above lung and below bone; fewer samples than a small head has show no peak.
_FEWEST_SAMPLES = 1000
# Cortical bone is 1000-1900 HU and teeth reach 3000: a lower ceiling has cut them.
_CEILING_HU = 1000
# A ceiling holds many voxels; a maximum that happens to be low, a few.
_CEILING_SHARE = 1e-3
# Steps between neighbouring slices, as a share of the largest of the three before and the three after: of 203 OpenKBP
# scans, all but three without a jump to be seen stay below 1.85, of 32 phantoms all. Three slices of 2.5 mm taken out
# reach 1.9 in half the places, so what is found is a lower bound.
_JUMP = 2.0
_JUMP_NEIGHBOURS = 3
_FEWEST_BODY_CM2 = 20.0
# Fat at -100 with noise is above; couch shells and masks, a few mm thick, are no run of this length along a border.
_CUT_ABOVE_HU = -200
_CUT_RUN_MM = 40.0
# Beside the tumour: a plan's beams and a patch of the network reach so far.
_NEAR_TUMOUR_MM = 20.0


def check_scan(case_id: str, scan: Volume, seen: Sketch) -> list[Finding]:
    """All findings of a scan in HU.

    Args:
        case_id: names the case.
        scan: CT in HU.
        seen: its sketch.
    """
    return [
        *_grid(case_id, scan, seen),
        *_intensity(case_id, seen),
        *_slices(case_id, scan, seen),
        *_turned(case_id, seen),
    ]


def not_hu(case_id: str, scan: Volume, file: str) -> Finding | None:
    """What speaks against Hounsfield units in a file of this name, with a guess at what the values are."""
    try:
        check_hu(scan)
    except DataError as error:
        low, high = float(scan.array.min()), float(scan.array.max())
        guess = "one value throughout" if low == high else ""
        if not guess and low >= 0 and high <= 1:
            guess = "they look scaled to 0..1"
        elif not guess and low >= 0 and high <= 255:
            guess = "they look like an 8-bit picture of one window"
        elif not guess and -50 <= low <= 50 and high > 500:
            guess = "they look 1024 too high, as stored without the rescale intercept"
        said = f"values are not Hounsfield units: expected {error.fields['expected']}, found {error.fields['found']}"
        return finding("scan.not_hu", case_id, f"{said}{'; ' if guess else ''}{guess}, in {file}")
    return None


def cut_slices(scan: Volume) -> NDArray[np.bool_]:
    """For each slice from feet to head, whether the field of view cuts the body: tissue along 40 mm of its border."""
    upright = scan.reoriented(AXES)
    x_mm, y_mm, _ = upright.spacing_mm
    array = upright.array
    cut = np.zeros(array.shape[2], dtype=bool)
    for border, spacing in ((array[0], y_mm), (array[-1], y_mm), (array[:, 0], x_mm), (array[:, -1], x_mm)):
        need = max(1, round(_CUT_RUN_MM / spacing))
        counts = np.cumsum(np.pad(border > _CUT_ABOVE_HU, ((1, 0), (0, 0))), axis=0)
        if len(counts) > need:
            # A run of tissue without a gap, as a couch seen from its end or scattered noise has not.
            cut |= (counts[need:] - counts[:-need]).max(axis=0) == need
    return cut


def check_cut(case_id: str, scan: Volume, tumour_z: NDArray[np.bool_] | None) -> Iterator[Finding]:
    """Whether the field of view cuts the body, and whether beside the tumour.

    Args:
        case_id: names the case.
        scan: CT in HU.
        tumour_z: for each slice from feet to head whether it holds tumour; None without a mask.
    """
    cut = cut_slices(scan)
    if not cut.any():
        return
    if tumour_z is not None and tumour_z.any():
        reach = int(_NEAR_TUMOUR_MM / scan.reoriented(AXES).spacing_mm[2])
        near = np.convolve(tumour_z, np.ones(2 * reach + 1), mode="same")[: len(cut)] > 0 if reach else tumour_z
        both = np.flatnonzero(cut & near)
        if both.size:
            message = f"the body is cut at the side of {both.size} slices within {_NEAR_TUMOUR_MM:g} mm of the tumour"
            yield finding("scan.cut_near_tumour", case_id, message, slice_index=file_slice(scan, int(both[0])))
            return
    first = int(np.flatnonzero(cut)[0])
    message = f"the body is cut at the side of {int(cut.sum())} of {len(cut)} slices"
    yield finding("scan.cut", case_id, message, slice_index=file_slice(scan, first))


def file_slice(volume: Volume, from_feet: int) -> int:
    """A slice counted from the feet as the file counts it, along its axis nearest to feet-head."""
    return from_feet if "S" in volume.orientation else volume.reoriented(AXES).shape[2] - 1 - from_feet


def _grid(case_id: str, scan: Volume, seen: Sketch) -> Iterator[Finding]:
    x_mm, y_mm, z_mm = scan.reoriented(AXES).spacing_mm
    spacing = f"{x_mm:.4g} x {y_mm:.4g} x {z_mm:.4g} mm"
    if is_sheared(scan.affine):
        yield finding("grid.sheared", case_id, "the axes are not at right angles, as after a gantry tilt")
    pixels_fit = all(_PIXEL_MM[0] <= pixel <= _PIXEL_MM[1] for pixel in (x_mm, y_mm))
    if not pixels_fit or not _SLICE_MM[0] <= z_mm <= _SLICE_MM[1]:
        yield finding("grid.spacing", case_id, f"spacing of {spacing}")
    elif abs(x_mm - y_mm) > _SQUARE_TOLERANCE * max(x_mm, y_mm):
        yield finding("grid.spacing", case_id, f"pixels are not square: {spacing}")
    widest = [seen.body.any(axis=(other, 2)).sum() * seen.spacing_mm[axis] for axis, other in ((0, 1), (1, 0))]
    low, high = _BODY_ACROSS_MM
    if not low <= max(widest) <= high:
        message = f"the body is {widest[0]:.0f} mm wide and {widest[1]:.0f} mm deep"
        yield finding("grid.body_size", case_id, message)


def _intensity(case_id: str, seen: Sketch) -> Iterator[Finding]:
    inside = seen.hu[seen.body]
    # Bone apart, what is above lung is soft tissue wherever HU begin: the peak tells where that is.
    counts, edges = np.histogram(inside, bins=125, range=(-500, 500))
    if counts.sum() >= _FEWEST_SAMPLES:
        peak = float(edges[int(np.convolve(counts, np.ones(5), mode="same").argmax())])
        if not _SOFT_PEAK_HU[0] <= peak <= _SOFT_PEAK_HU[1]:
            yield finding("scan.hu_shifted", case_id, f"most tissue is at {peak:.0f} HU, expected about 0 to 60")
    top = seen.hu.max()
    if top < _CEILING_HU and (inside == top).sum() > _CEILING_SHARE * max(inside.size, 1):
        yield finding("scan.clipped", case_id, f"nothing is above {float(top):.0f} HU, where many voxels lie")


def _slices(case_id: str, scan: Volume, seen: Sketch) -> Iterator[Finding]:
    steps = _steps_hu(seen)
    for k in np.flatnonzero(steps == 0):
        message = "a slice is the same as the next one, voxel for voxel"
        yield finding("scan.slice_repeated", case_id, message, slice_index=file_slice(scan, int(k)))
    worst, at = 0.0, 0
    for k in np.flatnonzero(steps > 0):
        around = np.concatenate([steps[max(0, k - _JUMP_NEIGHBOURS) : k], steps[k + 1 : k + 1 + _JUMP_NEIGHBOURS]])
        around = around[around > 0]
        if around.size > _JUMP_NEIGHBOURS and steps[k] / around.max() > worst:
            worst, at = float(steps[k] / around.max()), int(k)
    if worst >= _JUMP:
        message = f"the anatomy jumps to the next slice, {worst:.1f} times as far as between the slices around"
        yield finding("scan.slices_missing", case_id, message, slice_index=file_slice(scan, at))


def _steps_hu(seen: Sketch) -> NDArray[np.float64]:
    """Mean difference of each slice and the next where both show body; NaN with too little body to tell."""
    steps = np.full(seen.hu.shape[2] - 1, np.nan)
    lower = np.clip(seen.hu[:, :, 0], -1000, 500).astype(np.float32)
    for k in range(len(steps)):
        upper = np.clip(seen.hu[:, :, k + 1], -1000, 500).astype(np.float32)
        both = seen.body[:, :, k] & seen.body[:, :, k + 1]
        if both.sum() * seen.sample_cm2 > _FEWEST_BODY_CM2:
            steps[k] = np.abs(upper - lower)[both].mean()
        lower = upper
    return steps


def _turned(case_id: str, seen: Sketch) -> Iterator[Finding]:
    """A table lies behind its patient. Left and right, or head and feet, cannot be told from a head alone."""
    # Flat and wide, in nearly every slice, and not part of the body: a table, and no cable or mask.
    outside = (seen.hu > 2 * TISSUE_ABOVE_HU) & ~seen.body
    wide = outside.sum(axis=0) * seen.spacing_mm[0] > 200
    rows, body_rows = np.flatnonzero(wide.mean(axis=1) > 0.8), np.flatnonzero(seen.body.any(axis=(0, 2)))
    if rows.size and body_rows.size and rows.min() > body_rows.mean() + 0.25 * np.ptp(body_rows):
        yield finding("scan.turned", case_id, "the table is in front of the patient: prone, or front and back swapped")
