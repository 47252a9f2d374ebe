"""Checks of a mask against its scan: position, size, components, holes and skipped slices."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations

import cc3d
import edt
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from gtvray.datasets.checks.body import AXES, TISSUE_ABOVE_HU, Sketch
from gtvray.datasets.checks.findings import Finding, finding
from gtvray.datasets.checks.scans import file_slice
from gtvray.geometry import Box, Volume, label_components

# A T1 tumour of 5 mm has 0.07 ml; the largest planning targets of the head and neck have about 1.5 litres.
_VOLUME_ML = (0.05, 2000.0)
# A component this small and this far from the rest is a slip rather than a node: a node of 5 mm has 0.07 ml, but spans
# several slices and is seldom alone.
_STRAY_ML, _STRAY_SHARE, _STRAY_GAP_MM = 0.1, 0.02, 10.0
# A thresholded mask has hundreds; only the largest are listed.
_MAX_STRAYS = 10
# Larger than a few voxels, which nobody excludes on purpose.
_HOLE_ML = 0.005
# Shares of the tumour outside the body. Planning targets end at the skin to within a voxel, hence the tolerance.
_OUTSIDE, _MISPLACED = 0.1, 0.5
# Shares of the tumour: GTVs of lung and pharynx include air at their rim, those of the skull base bone.
_IN_AIR, _IN_BONE = 0.4, 0.6
_BONE_ABOVE_HU = 300
# Overlap of the contours on both sides of an empty slice, relative to the smaller one: with more, they are one
# structure with a missing contour.
_SKIPPED_OVERLAP = 0.5
_AXIS_NAMES = ("left-right", "front-back", "head-feet")


@dataclass(frozen=True)
class Tumour:
    """Measurements of a mask.

    Attributes:
        ml: volume.
        components: number of 26-connected components.
        extent_mm: size of the bounding box along right-left, back-front, feet-head.
        centre_ras_mm: centre of mass.
        slices: number of axial slices with tumour.
        at_border: whether the mask touches the border of the scan.
    """

    ml: float
    components: int
    extent_mm: tuple[float, float, float]
    centre_ras_mm: tuple[float, float, float]
    slices: int
    at_border: bool


class Mask:
    """A non-empty mask cropped to its bounding box, axes RAS.

    Args:
        label: mask of 0 and 1 on the scan's grid.
    """

    def __init__(self, label: Volume) -> None:
        self.label = label
        self.upright = label.reoriented(AXES)
        box = Box.around(np.asarray(self.upright.array != 0))
        assert box is not None, "read_label refuses an empty mask"
        self.box = box
        self.cut = np.asfortranarray(self.upright.array[box.slices] != 0)
        self.pieces, self.count = label_components(self.cut)
        self.sizes = np.bincount(self.pieces.ravel(), minlength=self.count + 1)[1:]

    def tumour(self) -> Tumour:
        """Measure the mask."""
        size = np.asarray(self.box.shape) * self.upright.spacing_mm
        return Tumour(
            ml=float(self.sizes.sum()) * self.label.voxel_volume_ml,
            components=int(self.count),
            extent_mm=(float(size[0]), float(size[1]), float(size[2])),
            centre_ras_mm=self.centre_of(self.cut),
            slices=int(self.in_slices().sum()),
            at_border=bool(self.borders()),
        )

    def in_slices(self) -> NDArray[np.bool_]:
        """Return whether each slice of the scan, from feet to head, contains tumour."""
        in_slice = np.zeros(self.upright.shape[2], dtype=bool)
        in_slice[self.box.slices[2]] = self.cut.any(axis=(0, 1))
        return in_slice

    def centre_of(self, part: NDArray[np.bool_]) -> tuple[float, float, float]:
        """Compute the centre of mass of a part of the crop, in RAS millimetres."""
        middle = [float(np.average(np.arange(n), weights=_along(part, axis))) for axis, n in enumerate(part.shape)]
        x, y, z = self.upright.affine[:3, :3] @ (np.array(middle) + self.box.start_ijk) + self.upright.affine[:3, 3]
        return float(x), float(y), float(z)

    def slice_of(self, part: NDArray[np.bool_]) -> int:
        """Return the index of the file's slice that contains most of a part of the crop."""
        return file_slice(self.label, self.box.start_ijk[2] + int(_along(part, 2).argmax()))

    def borders(self) -> list[int]:
        """Return the axes along which the tumour touches the border of the scan."""
        sides = zip(self.box.start_ijk, self.box.stop_ijk, self.upright.shape, strict=True)
        return [axis for axis, (start, stop, n) in enumerate(sides) if start == 0 or stop == n]


def check_label(case_id: str, mask: Mask, scan: Volume, sketch: Sketch) -> list[Finding]:
    """List the findings of a mask.

    Args:
        case_id: the case.
        mask: the mask.
        scan: CT in HU.
        sketch: sketch of the scan.
    """
    return [
        *_size(case_id, mask),
        *_stray_components(case_id, mask),
        *_holes(case_id, mask),
        *_skipped_slices(case_id, mask),
        *_surroundings(case_id, mask, scan, sketch),
    ]


def _size(case_id: str, mask: Mask) -> Iterator[Finding]:
    tumour = mask.tumour()
    if not _VOLUME_ML[0] <= tumour.ml <= _VOLUME_ML[1]:
        yield finding("label.volume", case_id, f"tumour of {tumour.ml:.3g} ml", place_ras_mm=tumour.centre_ras_mm)
    if tumour.slices == 1 and mask.upright.shape[2] > 1:
        yield finding("label.one_slice", case_id, "tumour in a single slice", slice_index=mask.slice_of(mask.cut))
    if tumour.at_border:
        axis = mask.borders()[-1]
        where = "first or last slice" if axis == 2 else f"border ({_AXIS_NAMES[axis]})"
        at = mask.slice_of(mask.cut)
        yield finding("label.at_border", case_id, f"the tumour reaches the scan's {where}", slice_index=at)


def _stray_components(case_id: str, mask: Mask) -> Iterator[Finding]:
    voxel_ml, total = mask.label.voxel_volume_ml, mask.sizes.sum()
    small = np.flatnonzero((mask.sizes * voxel_ml < _STRAY_ML) & (mask.sizes < _STRAY_SHARE * total)) + 1
    if not small.size:
        return
    big = ~np.isin(mask.pieces, [0, *small])
    if not big.any():
        return
    away_mm = edt.edt(~big, anisotropy=mask.upright.spacing_mm, parallel=1)
    gaps_mm = np.asarray(ndimage.minimum(away_mm, mask.pieces, small))
    far, largest = gaps_mm >= _STRAY_GAP_MM, np.argsort(-mask.sizes[small - 1], kind="stable")
    strays = [number for number in largest if far[number]]
    for number in strays[:_MAX_STRAYS]:
        part = mask.pieces == small[number]
        ml = mask.sizes[small[number] - 1] * voxel_ml
        message = f"a component of {ml:.2g} ml, {gaps_mm[number]:.0f} mm from the rest"
        at, centre = mask.slice_of(part), mask.centre_of(part)
        yield finding("label.stray_component", case_id, message, slice_index=at, place_ras_mm=centre)
    if len(strays) > _MAX_STRAYS:
        message = f"{len(strays) - _MAX_STRAYS} more components, each smaller than those listed"
        yield finding("label.stray_component", case_id, message)
    if not far.all():
        specks = int((~far).sum())
        yield finding("label.specks", case_id, f"{specks} components of less than {_STRAY_ML:g} ml beside the tumour")


def _holes(case_id: str, mask: Mask) -> Iterator[Finding]:
    pieces = cc3d.connected_components(np.pad(~mask.cut, 1, constant_values=True), connectivity=6)
    inner = pieces[1:-1, 1:-1, 1:-1]
    closed = (inner != pieces[0, 0, 0]) & (inner != 0)
    ml = float(closed.sum()) * mask.label.voxel_volume_ml
    if ml > _HOLE_ML:
        message = f"{ml:.2g} ml inside the tumour are not marked"
        at, centre = mask.slice_of(closed), mask.centre_of(closed)
        yield finding("label.holes", case_id, message, slice_index=at, place_ras_mm=centre)


def _skipped_slices(case_id: str, mask: Mask) -> Iterator[Finding]:
    in_slice = mask.cut.any(axis=(0, 1))
    for k in np.flatnonzero(~in_slice):
        below, above = mask.cut[:, :, k - 1], mask.cut[:, :, k + 1]
        shared, smaller = (below & above).sum(), min(below.sum(), above.sum())
        if shared > _SKIPPED_OVERLAP * smaller and smaller:
            at = file_slice(mask.label, mask.box.start_ijk[2] + int(k))
            yield finding("label.slice_skipped", case_id, "no contour between two slices that have one", slice_index=at)


def _surroundings(case_id: str, mask: Mask, scan: Volume, sketch: Sketch) -> Iterator[Finding]:
    hu = scan.reoriented(AXES).array[mask.box.slices][mask.cut]
    outside = 1 - _share_in_body(mask.upright.array, sketch)
    if outside > _MISPLACED:
        flips = [axes for count in (1, 2, 3) for axes in combinations(range(3), count)]
        fits = {axes: _share_in_body(np.flip(mask.upright.array, axes), sketch) for axes in flips}
        best = max(fits, key=lambda axes: fits[axes])
        named = " and ".join(_AXIS_NAMES[axis] for axis in best)
        hint = f"; flipped {named} it would be inside" if fits[best] > 1 - _OUTSIDE else ""
        message = f"{outside:.0%} of the tumour is outside the body{hint}"
        yield finding("label.misplaced", case_id, message, slice_index=mask.slice_of(mask.cut))
        return
    if outside > _OUTSIDE:
        message = f"{outside:.0%} of the tumour is outside the body"
        yield finding("label.outside_body", case_id, message, slice_index=mask.slice_of(mask.cut))
    air, bone = float((hu < TISSUE_ABOVE_HU).mean()), float((hu > _BONE_ABOVE_HU).mean())
    if air - outside > _IN_AIR:
        yield finding("label.in_air", case_id, f"{air:.0%} of the tumour is air or lung")
    if bone > _IN_BONE:
        yield finding("label.in_bone", case_id, f"{bone:.0%} of the tumour is bone")


def _share_in_body(array: NDArray[np.uint8], sketch: Sketch) -> float:
    """Compute the share of a mask inside the body from the sketch's samples; 1 if the mask includes no sample."""
    thin = array[:: sketch.step_xy[0], :: sketch.step_xy[1]] != 0
    count = int(thin.sum())
    return float((thin & sketch.body).sum()) / count if count else 1.0


def _along(part: NDArray[np.bool_], axis: int) -> NDArray[np.int64]:
    return np.asarray(part.sum(axis=tuple(other for other in range(3) if other != axis)))
