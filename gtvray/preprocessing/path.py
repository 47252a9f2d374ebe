"""Preprocessing, version 1: reorientation, body crop and resampling of scans; the inverse for masks.

The scan is reoriented to RAS axes, cropped to the body, and resampled to `spacing_mm`. Intensity windows are applied
later, to patches: the cache stores HU, and one cached case serves every choice of windows. The region outside the body
can be kept as well.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import cc3d
import numpy as np
from numpy.typing import NDArray

from gtvray.config import PreprocessingConfig
from gtvray.errors import DataError
from gtvray.geometry import Box, Volume, is_sheared, orthogonal_grid, resample_to_grid, resampled_grid
from gtvray.geometry.affine import Affine
from gtvray.io import VolumeHeader, as_labels
from gtvray.preprocessing.channels import mirror_sum, mirrored_hu

# Increment it whenever the same scan and settings give other voxels: caches and bundles store it.
PREPROCESSING_VERSION = 1
AXES = "RAS"
AIR_HU = -1024
SHEARED = "the scan's axes are not at right angles (gantry tilt); it was resampled to an orthogonal grid"
_HU_RANGE = (AIR_HU, 3071)
# Scanners store 12 bits, 16 with an extended scale for metal.
_FURTHEST_HU = 100_000
_DO_SCALING = "export the CT again, or correct the slope and intercept of its header (scl_slope, scl_inter)"
_BODY_SEARCH_MM = 4.0
# A separate part of at least this share of the largest, e.g. a second leg, is reported when it is cropped. A couch or
# a cushion is smaller.
_PART_SHARE = 0.25
_ROUNDING = 1e-3
# Of the scan's grid, that are interpolated at once.
_SLAB_VOXELS = 1 << 23
_ORDERS = {"linear": 1, "cubic": 3}
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prepared:
    """A scan on the prepared grid.

    Attributes:
        hu: int16 HU on the prepared grid (RAS axes, `spacing_mm`), of the body or of the full scan.
        source_affine: affine of the original scan.
        source_shape: shape of the original scan.
        antialias: whether averages were taken on axes that got coarser.
        crop: box of the reoriented (RAS) scan that was kept; None if nothing was cropped.
        notes: remarks on the scan for readers of the result, one sentence each.
        mirrored: HU on the same grid, of the scan mirrored about its mid-sagittal plane; None unless configured.
        extent: box that covers the full scan, in voxels of this grid, which it contains; None if it is this grid.
        body: box of the body in this grid; None if it is this grid.
    """

    hu: Volume
    source_affine: Affine
    source_shape: tuple[int, int, int]
    antialias: bool = True
    crop: Box | None = None
    notes: tuple[str, ...] = ()
    mirrored: NDArray[np.int16] | None = None
    extent: Box | None = None
    body: Box | None = None

    @property
    def body_hu(self) -> Volume:
        """HU in the box of the body."""
        return self.hu if self.body is None else self.hu.cropped(self.body)

    def cropped(self, box: Box) -> Prepared:
        """A part of the grid as a scan of its own."""
        part = self.hu.cropped(box)
        mirrored = None if self.mirrored is None else self.mirrored[box.slices]
        return Prepared(part, part.affine, part.shape, self.antialias, mirrored=mirrored)


def prepare(scan: Volume, config: PreprocessingConfig, where: object = None, *, full_extent: bool = False) -> Prepared:
    """Reorient, crop and resample a CT.

    Args:
        scan: CT in HU on any grid.
        config: the preprocessing settings.
        where: name of the scan in errors.
        full_extent: extend the grid beyond the body by as many voxels as cover the scan. Inside the box of the body,
            border included, values and mirror image equal those without it bit for bit; the mirror plane is the body's.

    Raises:
        DataError: the values are not HU, or the scan contains no body.
    """
    check_hu(scan, where)
    order = _ORDERS[config.interpolation]
    upright, notes = scan, []
    if is_sheared(scan.affine):
        notes.append(SHEARED)
        _log.warning("%s: %s", where or "scan", SHEARED)
        grid = orthogonal_grid(scan.affine, scan.shape)
        upright = resample_to_grid(scan, *grid, order=order, fill=AIR_HU)
    upright = upright.reoriented(AXES)
    crop, apart_ml = _body_box(upright, config, where)
    if apart_ml and not full_extent:
        notes.append(f"{apart_ml:.0f} ml of tissue separate from the body were cropped")
        _log.warning("%s: %s", where or "scan", notes[-1])
    sampled = partial(resample_to_grid, order=order, fill=AIR_HU, antialias=config.antialias, int16_range=_HU_RANGE)
    body = upright.cropped(crop)
    hu = sampled(body, *resampled_grid(body, config.spacing_mm))
    extent = _extent(upright, hu)
    mirrored = mirrored_hu(hu.array, mirror_sum(hu), AIR_HU) if config.mirrored else None
    prepared = Prepared(hu, scan.affine, scan.shape, config.antialias, crop, tuple(notes), mirrored, extent)
    return _with_surroundings(prepared, upright, extent, sampled) if full_extent else prepared


def prepare_mask(mask: Volume, prepared: Prepared) -> NDArray[np.uint8]:
    """Resample a mask on the scan's own grid to the prepared grid.

    A voxel is set where the linearly resampled mask reaches one half; with `antialias`, the mask is averaged over
    coarser voxels like the scan.

    Raises:
        DataError: the values of the mask are not labels.
    """
    grid = prepared.hu
    result = np.zeros(grid.shape, dtype=np.uint8)
    mask = as_labels(mask, "mask").volume
    # Masks of 0 and 1, as those of cases, are not copied.
    binary = mask.array.dtype == np.uint8 and mask.array.max() <= 1
    upright = (mask if binary else mask.with_array((mask.array > 0).view(np.uint8))).reoriented(AXES)
    drawn = Box.around(upright.array)
    near = _covering_box(upright.cropped(drawn), grid) if drawn else None
    if near is None:
        return result
    # Averages extend one voxel of the prepared grid beyond the mask.
    near = near.grown((1, 1, 1), grid.shape)
    share = resample_to_grid(
        upright, grid.affine, grid.shape, order=1, fill=0.0, antialias=prepared.antialias, within=near
    )
    result[near.slices] = share.array >= 0.5
    return result


def cut_off_share(mask: Volume, prepared: Prepared) -> float:
    """The share of a mask's voxels outside the prepared grid, lost with what the crop took for air."""
    drawn = Box.around(mask.array)
    if drawn is None:
        return 0.0
    voxels_ijk = np.argwhere(mask.array[drawn.slices]) + drawn.start_ijk
    to_grid = np.linalg.inv(prepared.hu.affine) @ mask.affine
    at = voxels_ijk @ to_grid[:3, :3].T + to_grid[:3, 3]
    outside = (at < -0.5 - _ROUNDING) | (at > np.asarray(prepared.hu.shape) - 0.5 + _ROUNDING)
    return float(outside.any(axis=1).mean())


def restore_mask(
    probability: NDArray[np.float32], prepared: Prepared, threshold: float, within: Box | None = None
) -> Volume:
    """Resample tumour probabilities to the scan's own grid, and threshold them to a uint8 mask.

    Only the region that can exceed the threshold is interpolated: a point between voxels that are all below it is below
    it too.

    Args:
        probability: (i, j, k) on the prepared grid.
        prepared: the scan, from `prepare`.
        threshold: a voxel is marked where the interpolated probability exceeds it.
        within: box of the prepared grid that `probability` covers, at least one voxel wider than the voxels that
            exceed the threshold; by default the full grid.
    """
    mask = np.zeros(prepared.source_shape, dtype=np.uint8, order="F")
    source = Volume(mask, prepared.source_affine)
    core = Box.around(probability > threshold)
    if core is None:
        return source
    region = core.grown((1, 1, 1), probability.shape)
    grid = prepared.hu.cropped(within) if within is not None else prepared.hu
    soft = grid.with_array(probability).cropped(region)
    upright = source.reoriented(AXES)
    target = _covering_box(soft, upright)
    if target is None:
        return source
    part = upright.cropped(target)
    marked = np.zeros(part.shape, np.uint8, order="F")
    for slab in _slabs(part.array.strides, part.shape) if not is_sheared(part.affine) else [Box.whole(part.shape)]:
        values = resample_to_grid(soft, part.affine, part.shape, order=1, fill=0.0, within=slab).array
        np.greater(values, threshold, out=marked[slab.slices], casting="unsafe")
    return part.with_array(marked).placed_on(source, 0)


def check_hu(scan: Volume, where: object = None) -> None:
    """Check that the values of a scan can be Hounsfield units.

    A CT of a head or body contains air and tissue, so its values reach below -500 HU and above -100 HU. None has values
    beyond those of 16 bits with a small slope; with a damaged scaling they are.

    Raises:
        DataError: they do not, or they are far beyond those of any CT.
    """
    low, high = float(scan.array.min()), float(scan.array.max())
    if max(-low, high) > _FURTHEST_HU:
        raise DataError(
            "values are far beyond those of a CT",
            where=where,
            expected=f"Hounsfield units, at most {_FURTHEST_HU:,} from 0",
            found=f"{low:.4g} to {high:.4g}",
            do=_DO_SCALING,
        )
    if low > -500 or high < -100:
        raise DataError(
            "values are not Hounsfield units of a CT",
            where=where,
            expected="air below -500 and tissue above -100",
            found=f"{low:.4g} to {high:.4g}",
            do="export the CT with its rescale slope and intercept applied",
        )


def check_header_hu(header: VolumeHeader, where: object = None) -> None:
    """Check that the values of a scan can be Hounsfield units, as far as its header shows it.

    Integers with a large slope are either all equal or far apart, and `check_hu` accepts neither.

    Raises:
        DataError: they cannot.
    """
    if header.dtype.kind in "iu" and abs(header.slope) > 2 * _FURTHEST_HU:
        raise DataError(
            "values are far beyond those of a CT",
            where=where,
            expected=f"Hounsfield units, at most {_FURTHEST_HU:,} from 0",
            found=f"integers with a slope of {header.slope:.4g}",
            do=_DO_SCALING,
        )


def _body_box(upright: Volume, config: PreprocessingConfig, where: object) -> tuple[Box, float]:
    """The box around the largest component of tissue, with its margin, and the ml of a large one outside it."""
    steps = [max(1, round(_BODY_SEARCH_MM / spacing)) for spacing in upright.spacing_mm]
    coarse = upright.array[:: steps[0], :: steps[1], :: steps[2]] > config.body_threshold_hu
    parts = np.asarray(cc3d.largest_k(coarse, k=2, connectivity=6)) if coarse.any() else coarse.view(np.uint8)
    counts = np.bincount(parts.ravel(), minlength=3)[1:]
    largest = parts == 1 + int(counts.argmax())
    box = Box.around(largest)
    if box is None:
        raise DataError("no body in this scan", where=where, expected="tissue", found="air only")
    # The sample before the first one of the body is air; the voxels between the two are unknown and are kept.
    start = [max(0, (s - 1) * step + 1) for s, step in zip(box.start_ijk, steps, strict=True)]
    stop = [min(n, s * step) for n, s, step in zip(upright.shape, box.stop_ijk, steps, strict=True)]
    margin = [round(config.body_margin_mm / spacing) for spacing in upright.spacing_mm]
    kept = Box((start[0], start[1], start[2]), (stop[0], stop[1], stop[2])).grown(
        (margin[0], margin[1], margin[2]), upright.shape
    )
    second = (parts > 0) & ~largest
    apart = np.count_nonzero(second) - np.count_nonzero(second[box.slices])
    large = apart >= _PART_SHARE * np.count_nonzero(largest)
    return kept, apart * float(np.prod(steps)) * upright.voxel_volume_ml if large else 0.0


def _with_surroundings(prepared: Prepared, upright: Volume, extent: Box, sampled: Callable[..., Volume]) -> Prepared:
    """Extend the prepared body to the `extent`, with values sampled from the scan."""
    hu, body = prepared.hu, Box.whole(prepared.hu.shape).moved(extent.start_ijk)
    affine = hu.affine.copy()
    affine[:3, 3] += affine[:3, :3] @ np.asarray(extent.start_ijk, dtype=np.float64)
    array = np.empty(extent.shape, np.int16)
    for part in _complement(body, extent.shape):
        array[part.slices] = sampled(upright, affine, extent.shape, within=part).array
    array[body.slices] = hu.array
    mirrored = None
    if prepared.mirrored is not None:
        # Indices of a voxel and of its mirror image both grow by the start of the body.
        mirrored = mirrored_hu(array, mirror_sum(hu) + 2 * body.start_ijk[0], AIR_HU)
        mirrored[body.slices] = prepared.mirrored
    return replace(prepared, hu=Volume(array, affine), crop=None, mirrored=mirrored, extent=None, body=body)


def _extent(upright: Volume, hu: Volume) -> Box:
    """The box that contains a prepared grid and the scan, in voxels of the grid; it may start at negative ones."""
    to_grid = np.linalg.inv(hu.affine) @ upright.affine
    # Axes are parallel and have the same direction.
    scale, offset = np.diag(to_grid)[:3], to_grid[:3, 3]
    low, high = offset - scale / 2, offset + scale * (np.asarray(upright.shape) - 0.5)
    start = np.minimum(0, np.floor(low + 0.5 + _ROUNDING)).astype(int)
    stop = np.maximum(hu.shape, np.ceil(high + 0.5 - _ROUNDING)).astype(int)
    return Box((int(start[0]), int(start[1]), int(start[2])), (int(stop[0]), int(stop[1]), int(stop[2])))


def _complement(box: Box, shape: tuple[int, int, int]) -> Iterator[Box]:
    """A grid without a box of it, as at most six boxes that do not overlap."""
    start, stop = [0, 0, 0], list(shape)
    for axis in reversed(range(3)):
        for low, high in ((0, box.start_ijk[axis]), (box.stop_ijk[axis], shape[axis])):
            if low < high:
                first, last = [*start], [*stop]
                first[axis], last[axis] = low, high
                yield Box((first[0], first[1], first[2]), (last[0], last[1], last[2]))
        start[axis], stop[axis] = box.start_ijk[axis], box.stop_ijk[axis]


def _slabs(strides: tuple[int, ...], shape: tuple[int, int, int]) -> Iterator[Box]:
    """Cut a grid across the axis that is slowest in memory, so that float values of few voxels are held at once."""
    axis = int(np.argmax(np.abs(strides)))
    thick = max(1, _SLAB_VOXELS * shape[axis] // int(np.prod(shape)))
    for first in range(0, shape[axis], thick):
        start, stop = [0, 0, 0], list(shape)
        start[axis], stop[axis] = first, min(first + thick, shape[axis])
        yield Box((start[0], start[1], start[2]), (stop[0], stop[1], stop[2]))


def _covering_box(part: Volume, grid: Volume) -> Box | None:
    """The box of the voxels of a grid within one voxel of `part`, or None if there are none."""
    corners = np.array(np.meshgrid(*[(-1, n) for n in part.shape])).reshape(3, -1)
    to_grid = np.linalg.inv(grid.affine) @ part.affine
    at = to_grid[:3, :3] @ corners + to_grid[:3, 3:]
    start = np.maximum(0, np.floor(at.min(axis=1))).astype(int)
    stop = np.minimum(grid.shape, np.ceil(at.max(axis=1)) + 1).astype(int)
    if (stop <= start).any():
        return None
    return Box((int(start[0]), int(start[1]), int(start[2])), (int(stop[0]), int(stop[1]), int(stop[2])))
