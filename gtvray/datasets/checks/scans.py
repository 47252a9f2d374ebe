"""Checks of a scan: Hounsfield units, completeness of the slices, field of view, and plausibility of the grid."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from gtvray.datasets.checks.body import AXES, TISSUE_ABOVE_HU, Sketch
from gtvray.datasets.checks.findings import Finding, finding
from gtvray.errors import DataError
from gtvray.geometry import Volume, is_sheared
from gtvray.preprocessing import check_hu

# Planning CTs have pixels of 0.5-2.5 mm and slices of 1-5 mm; downsampled OpenKBP has pixels of 5.4 mm. Other values
# are more likely a header in other units.
_PIXEL_MM, _SLICE_MM = (0.2, 6.0), (0.3, 8.0)
# A CT's pixels are square by construction; headers round to a thousandth.
_SQUARE_TOLERANCE = 0.01
# A newborn's head is 80 mm wide, and no scanner bore is wider than 850 mm.
_BODY_ACROSS_MM = (60.0, 850.0)
# Fat peaks near -100 HU, muscle and brain near 20-60; contrast medium and water phantoms are within the range.
_SOFT_PEAK_HU = (-200, 200)
# Samples above lung and below bone; fewer than a small head has show no peak.
_FEWEST_SAMPLES = 1000
# Cortical bone has 1000-1900 HU and teeth up to 3000, so that a lower maximum indicates clipping.
_CEILING_HU = 1000
# Clipping leaves many voxels at the maximum, an unclipped scan only a few.
_CEILING_SHARE = 1e-3
# Difference of neighbouring slices, relative to the largest of the three before and the three after. It is below 1.85
# in all but three of 203 OpenKBP scans without a visible jump, and in all of 32 phantoms. Removing three slices of
# 2.5 mm reaches 1.9 at half of the positions, so that the check misses some gaps.
_JUMP = 2.0
_JUMP_NEIGHBOURS = 3
_FEWEST_BODY_CM2 = 20.0
# Fat at -100 HU with noise is above; couch shells and fixation masks, a few mm thick, give no run of this length.
_CUT_ABOVE_HU = -200
_CUT_RUN_MM = 40.0
# Within this distance a cut affects the beams of a plan and the patches of the network.
_NEAR_TUMOUR_MM = 20.0


def check_scan(case_id: str, scan: Volume, sketch: Sketch) -> list[Finding]:
    """List the findings of a scan in HU.

    Args:
        case_id: the case.
        scan: CT in HU.
        sketch: sketch of the scan.
    """
    return [
        *_grid(case_id, scan, sketch),
        *_intensity(case_id, sketch),
        *_slices(case_id, scan, sketch),
        *_turned(case_id, sketch),
    ]


def check_units(case_id: str, scan: Volume, file: str) -> Finding | None:
    """Check for Hounsfield units; the finding contains the file name and a guess at what the values are."""
    try:
        check_hu(scan)
    except DataError as error:
        low, high = float(scan.array.min()), float(scan.array.max())
        guess = "one value throughout" if low == high else ""
        if not guess and low >= 0 and high <= 1:
            guess = "they look scaled to 0..1"
        elif not guess and low >= 0 and high <= 255:
            guess = "they look like an 8-bit image of one window"
        elif not guess and -50 <= low <= 50 and high > 500:
            guess = "they look 1024 too high, as stored without the rescale intercept"
        fault = f"values are not Hounsfield units: expected {error.fields['expected']}, found {error.fields['found']}"
        return finding("scan.not_hu", case_id, f"{fault}{'; ' if guess else ''}{guess}, in {file}")
    return None


def cut_slices(scan: Volume) -> NDArray[np.bool_]:
    """Find the slices, from feet to head, in which the field of view cuts the body: tissue along 40 mm of a border."""
    upright = scan.reoriented(AXES)
    x_mm, y_mm, _ = upright.spacing_mm
    array = upright.array
    cut = np.zeros(array.shape[2], dtype=bool)
    for border, spacing in ((array[0], y_mm), (array[-1], y_mm), (array[:, 0], x_mm), (array[:, -1], x_mm)):
        need = max(1, round(_CUT_RUN_MM / spacing))
        counts = np.cumsum(np.pad(border > _CUT_ABOVE_HU, ((1, 0), (0, 0))), axis=0)
        if len(counts) > need:
            # Only an unbroken run of tissue counts; a couch seen from its end and noise have gaps.
            cut |= (counts[need:] - counts[:-need]).max(axis=0) == need
    return cut


def check_cut(case_id: str, scan: Volume, tumour_z: NDArray[np.bool_] | None) -> Iterator[Finding]:
    """Check whether the field of view cuts the body, and whether it does so beside the tumour.

    Args:
        case_id: the case.
        scan: CT in HU.
        tumour_z: whether each slice, from feet to head, contains tumour; None without a mask.
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
    """Convert a slice index counted from the feet to the index in the file, along its axis nearest to feet-head."""
    return from_feet if "S" in volume.orientation else volume.reoriented(AXES).shape[2] - 1 - from_feet


def _grid(case_id: str, scan: Volume, sketch: Sketch) -> Iterator[Finding]:
    x_mm, y_mm, z_mm = scan.reoriented(AXES).spacing_mm
    spacing = f"{x_mm:.4g} x {y_mm:.4g} x {z_mm:.4g} mm"
    if is_sheared(scan.affine):
        yield finding("grid.sheared", case_id, "the axes are not orthogonal, as after a gantry tilt")
    pixels_fit = all(_PIXEL_MM[0] <= pixel <= _PIXEL_MM[1] for pixel in (x_mm, y_mm))
    if not pixels_fit or not _SLICE_MM[0] <= z_mm <= _SLICE_MM[1]:
        yield finding("grid.spacing", case_id, f"spacing of {spacing}")
    elif abs(x_mm - y_mm) > _SQUARE_TOLERANCE * max(x_mm, y_mm):
        yield finding("grid.spacing", case_id, f"pixels are not square: {spacing}")
    widest = [sketch.body.any(axis=(other, 2)).sum() * sketch.spacing_mm[axis] for axis, other in ((0, 1), (1, 0))]
    low, high = _BODY_ACROSS_MM
    if not low <= max(widest) <= high:
        message = f"the body is {widest[0]:.0f} mm wide and {widest[1]:.0f} mm deep"
        yield finding("grid.body_size", case_id, message)


def _intensity(case_id: str, sketch: Sketch) -> Iterator[Finding]:
    inside = sketch.hu[sketch.body]
    # Between lung and bone most voxels are soft tissue, so that the peak shows a shift of the HU scale.
    counts, edges = np.histogram(inside, bins=125, range=(-500, 500))
    if counts.sum() >= _FEWEST_SAMPLES:
        peak = float(edges[int(np.convolve(counts, np.ones(5), mode="same").argmax())])
        if not _SOFT_PEAK_HU[0] <= peak <= _SOFT_PEAK_HU[1]:
            yield finding("scan.hu_shifted", case_id, f"most tissue is at {peak:.0f} HU, expected about 0 to 60")
    top = sketch.hu.max()
    if top < _CEILING_HU and (inside == top).sum() > _CEILING_SHARE * max(inside.size, 1):
        yield finding("scan.clipped", case_id, f"no value is above {float(top):.0f} HU, which many voxels have")


def _slices(case_id: str, scan: Volume, sketch: Sketch) -> Iterator[Finding]:
    steps = _steps_hu(sketch)
    for k in np.flatnonzero(steps == 0):
        message = "a slice is identical to the next one"
        yield finding("scan.slice_repeated", case_id, message, slice_index=file_slice(scan, int(k)))
    worst, at = 0.0, 0
    for k in np.flatnonzero(steps > 0):
        around = np.concatenate([steps[max(0, k - _JUMP_NEIGHBOURS) : k], steps[k + 1 : k + 1 + _JUMP_NEIGHBOURS]])
        around = around[around > 0]
        if around.size > _JUMP_NEIGHBOURS and steps[k] / around.max() > worst:
            worst, at = float(steps[k] / around.max()), int(k)
    if worst >= _JUMP:
        message = f"the difference to the next slice is {worst:.1f} times that between the surrounding slices"
        yield finding("scan.slices_missing", case_id, message, slice_index=file_slice(scan, at))


def _steps_hu(sketch: Sketch) -> NDArray[np.float64]:
    """Compute the mean absolute difference of each slice and the next within the body; NaN with too little body."""
    steps = np.full(sketch.hu.shape[2] - 1, np.nan)
    lower = np.clip(sketch.hu[:, :, 0], -1000, 500).astype(np.float32)
    for k in range(len(steps)):
        upper = np.clip(sketch.hu[:, :, k + 1], -1000, 500).astype(np.float32)
        both = sketch.body[:, :, k] & sketch.body[:, :, k + 1]
        if both.sum() * sketch.sample_cm2 > _FEWEST_BODY_CM2:
            steps[k] = np.abs(upper - lower)[both].mean()
        lower = upper
    return steps


def _turned(case_id: str, sketch: Sketch) -> Iterator[Finding]:
    """Find a table in front of the patient. A head scan does not reveal swapped left-right or head-feet axes."""
    # Wide, in nearly every slice, and not part of the body: a table rather than a cable or fixation mask.
    outside = (sketch.hu > 2 * TISSUE_ABOVE_HU) & ~sketch.body
    wide = outside.sum(axis=0) * sketch.spacing_mm[0] > 200
    rows, body_rows = np.flatnonzero(wide.mean(axis=1) > 0.8), np.flatnonzero(sketch.body.any(axis=(0, 2)))
    if rows.size and body_rows.size and rows.min() > body_rows.mean() + 0.25 * np.ptp(body_rows):
        yield finding("scan.turned", case_id, "the table is in front of the patient: prone, or front and back swapped")
