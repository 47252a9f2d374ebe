"""Preprocessing, version 1: upright axes, body crop, resampling, intensity windows; and the way back for masks.

The scan is turned to RAS axes, cut to the body, and resampled linearly to `spacing_mm`. Windows are applied last and
are cheap, so the cache holds HU and one cached case serves every choice of windows.
"""

from __future__ import annotations

from dataclasses import dataclass

import cc3d
import numpy as np
from numpy.typing import NDArray

from gtvray.config import PreprocessingConfig
from gtvray.errors import DataError
from gtvray.geometry import Box, Volume, is_sheared, orthogonal_grid, resample_to_grid, resampled_grid
from gtvray.geometry.affine import Affine

# Raise it whenever the same scan and settings would give other voxels: caches and bundles carry it.
PREPROCESSING_VERSION = 1
AXES = "RAS"
AIR_HU = -1024
_HU_RANGE = (AIR_HU, 3071)
_BODY_SEARCH_MM = 4.0


@dataclass(frozen=True)
class Prepared:
    """A scan as the network sees it.

    Attributes:
        hu: int16 HU on the prepared grid (RAS axes, `spacing_mm`).
        source_affine: affine of the scan as it came.
        source_shape: its shape.
        antialias: how it was resampled.
    """

    hu: Volume
    source_affine: Affine
    source_shape: tuple[int, int, int]
    antialias: bool = True


def prepare(scan: Volume, config: PreprocessingConfig, where: object = None) -> Prepared:
    """Bring a CT to the prepared grid.

    Args:
        scan: CT in HU on any grid.
        config: the preprocessing settings.
        where: what to name in an error.

    Raises:
        DataError: the values are not HU, or nothing in the scan looks like a body.
    """
    check_hu(scan, where)
    upright = scan
    if is_sheared(scan.affine):
        upright = resample_to_grid(scan, *orthogonal_grid(scan.affine, scan.shape), order=1, fill=AIR_HU)
    upright = upright.reoriented(AXES)
    body = upright.cropped(_body_box(upright, config, where))
    resampled = resample_to_grid(
        body, *resampled_grid(body, config.spacing_mm), order=1, fill=AIR_HU, antialias=config.antialias
    )
    hu = np.clip(np.rint(resampled.array), *_HU_RANGE).astype(np.int16)
    return Prepared(resampled.with_array(hu), scan.affine, scan.shape, config.antialias)


def prepare_mask(mask: Volume, prepared: Prepared) -> NDArray[np.uint8]:
    """Bring a mask drawn on the scan's own grid to the prepared grid.

    A voxel belongs to the result where the mask, resampled as the scan is, reaches one half.
    """
    soft = mask.with_array((mask.array > 0).astype(np.float32)).reoriented(AXES)
    grid = prepared.hu
    share = resample_to_grid(soft, grid.affine, grid.shape, order=1, fill=0.0, antialias=prepared.antialias)
    return (share.array >= 0.5).astype(np.uint8)


def to_channels(hu: NDArray[np.int16], windows_hu: tuple[tuple[float, float], ...]) -> NDArray[np.float32]:
    """HU (i, j, k) to float32 channels (window, i, j, k), each scaled to 0..1 over its window and clipped."""
    channels = np.empty((len(windows_hu), *hu.shape), dtype=np.float32)
    for channel, (low, high) in zip(channels, windows_hu, strict=True):
        np.subtract(hu, np.float32(low), out=channel)
        np.multiply(channel, np.float32(1.0 / (high - low)), out=channel)
        np.clip(channel, 0.0, 1.0, out=channel)
    return channels


def restore_mask(probability: NDArray[np.float32], prepared: Prepared, threshold: float) -> Volume:
    """Bring tumour probabilities back to the scan's own grid as a uint8 mask.

    Only the region that can reach the threshold is interpolated: a point between voxels that are all below it stays
    below it.

    Args:
        probability: (i, j, k) on the prepared grid.
        prepared: what `prepare` gave.
        threshold: a voxel is marked where the interpolated probability exceeds it.
    """
    mask = np.zeros(prepared.source_shape, dtype=np.uint8)
    source = Volume(mask, prepared.source_affine)
    core = Box.around(probability > threshold)
    if core is None:
        return source
    region = core.grown((1, 1, 1), probability.shape)
    soft = prepared.hu.with_array(probability).cropped(region)
    upright = source.reoriented(AXES)
    target = _covering_box(soft, upright)
    if target is None:
        return source
    part = upright.cropped(target)
    values = resample_to_grid(soft, part.affine, part.shape, order=1, fill=0.0).array > threshold
    full = np.zeros(upright.shape, dtype=np.uint8)
    full[target.slices] = values
    restored = upright.with_array(full).aligned_to(source)
    # The affine is the scan's own, not one that went through two reorientations.
    return Volume(np.ascontiguousarray(restored.array), prepared.source_affine)


def check_hu(scan: Volume, where: object = None) -> None:
    """Refuse a scan whose values cannot be Hounsfield units.

    A CT of a head or body holds both air and tissue, so its values reach below -500 HU and above -100 HU.

    Raises:
        DataError: they do not.
    """
    low, high = float(scan.array.min()), float(scan.array.max())
    if low > -500 or high < -100:
        raise DataError(
            "values are not Hounsfield units of a CT",
            where=where,
            expected="air below -500 and tissue above -100",
            found=f"{low:.4g} to {high:.4g}",
            do="export the CT with its rescale slope and intercept applied",
        )


def _body_box(upright: Volume, config: PreprocessingConfig, where: object) -> Box:
    steps = [max(1, round(_BODY_SEARCH_MM / spacing)) for spacing in upright.spacing_mm]
    coarse = upright.array[:: steps[0], :: steps[1], :: steps[2]] > config.body_threshold_hu
    largest = cc3d.largest_k(coarse, k=1, connectivity=6) if coarse.any() else coarse
    box = Box.around(np.asarray(largest) > 0)
    if box is None:
        raise DataError("no body in this scan", where=where, expected="tissue", found="air only")
    # The sample before the first in the body was air, but what lies between the two was not looked at.
    start = [max(0, (s - 1) * step + 1) for s, step in zip(box.start_ijk, steps, strict=True)]
    stop = [min(n, s * step) for n, s, step in zip(upright.shape, box.stop_ijk, steps, strict=True)]
    margin = [round(config.body_margin_mm / spacing) for spacing in upright.spacing_mm]
    return Box((start[0], start[1], start[2]), (stop[0], stop[1], stop[2])).grown(
        (margin[0], margin[1], margin[2]), upright.shape
    )


def _covering_box(part: Volume, whole: Volume) -> Box | None:
    """The voxels of `whole` that lie within one voxel of `part`, or None if none do."""
    corners = np.array(np.meshgrid(*[(-1, n) for n in part.shape])).reshape(3, -1)
    to_whole = np.linalg.inv(whole.affine) @ part.affine
    at = to_whole[:3, :3] @ corners + to_whole[:3, 3:]
    start = np.maximum(0, np.floor(at.min(axis=1))).astype(int)
    stop = np.minimum(whole.shape, np.ceil(at.max(axis=1)) + 1).astype(int)
    if (stop <= start).any():
        return None
    return Box((int(start[0]), int(start[1]), int(start[2])), (int(stop[0]), int(stop[1]), int(stop[2])))
