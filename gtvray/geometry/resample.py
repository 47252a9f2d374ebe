"""Resampling from one grid to another; separable if the axes of the grids are parallel, which is nearly always so.

Parallel grids are resampled in slabs across the axis that is slowest in memory, two at a time: only the result, in the
requested dtype, is held in full, and no copy of the volume in float32.
"""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from gtvray.geometry.affine import Affine
from gtvray.geometry.axis import AxisSampler
from gtvray.geometry.box import Box
from gtvray.geometry.volume import Volume

# Off-diagonal terms below this (in voxels over an axis of 1,000) are rounding, not rotation.
_PARALLEL_TOLERANCE = 1e-6
# Size of a slab, on the finer of its two grids; each thread holds several such arrays.
_SLAB_VOXELS = 1 << 20
_THREADS = 2


def resampled_grid(volume: Volume, spacing_mm: tuple[float, float, float]) -> tuple[Affine, tuple[int, int, int]]:
    """The grid of another spacing with the axes, the centre and at least the extent of a volume.

    Returns:
        the affine and the shape of the grid.
    """
    old_mm = np.asarray(volume.spacing_mm)
    new_mm = np.asarray(spacing_mm, dtype=np.float64)
    size = np.maximum(1, np.ceil(np.asarray(volume.shape) * old_mm / new_mm - 1e-3)).astype(int)
    affine = np.eye(4)
    affine[:3, :3] = volume.affine[:3, :3] / old_mm * new_mm
    affine[:3, 3] = volume.center_mm() - affine[:3, :3] @ ((size - 1) / 2)
    return affine, (int(size[0]), int(size[1]), int(size[2]))


def resample_to_grid(
    volume: Volume,
    affine: Affine,
    shape: tuple[int, int, int],
    *,
    order: int,
    fill: float,
    antialias: bool = False,
    int16_range: tuple[int, int] | None = None,
    within: Box | None = None,
) -> Volume:
    """Resample a volume at the voxel centres of another grid.

    Points up to half a voxel outside the volume take the value at the border; points further out take `fill`. If the
    axes of the grids are not parallel, values change linearly from the border's to `fill` over one voxel instead.

    Args:
        volume: source, any dtype.
        affine: of the target grid.
        shape: of the target grid.
        order: 0 nearest (dtype kept), 1 linear, 3 the interpolating cubic spline (float32).
        fill: value outside the volume.
        antialias: on axes that get coarser, average all voxels within one target voxel of a point, with weights that
            fall linearly (order 1 or 3 and parallel axes only), which reduces noise.
        int16_range: (lowest, highest); the result is clipped to it and rounded to int16 instead of float32.
        within: compute only this box of the target grid; its values are those of the full grid.

    Returns:
        the resampled volume; its array has the memory order of the source.
    """
    box = within or Box.whole(shape)
    result_affine = affine.copy()
    result_affine[:3, 3] += affine[:3, :3] @ np.asarray(box.start_ijk, dtype=np.float64)
    dtype = volume.array.dtype if order == 0 else np.dtype(np.float32 if int16_range is None else np.int16)
    to_source = np.linalg.inv(volume.affine) @ affine
    matrix, offset = to_source[:3, :3], to_source[:3, 3]
    if np.abs(matrix - np.diag(np.diag(matrix))).max() > _PARALLEL_TOLERANCE:
        values = _oblique(volume.array, matrix, offset, shape, order=order, fill=fill)[box.slices]
        return Volume(_cast(values, int16_range, dtype), result_affine)
    samplers = [
        AxisSampler(offset[axis], matrix[axis, axis], shape[axis], n, order=order, antialias=antialias, fill=fill)
        for axis, n in enumerate(volume.shape)
    ]
    # The axis that shrinks most goes first, which leaves the least work to the others; with a spline, slabs overlap so
    # much that the axis across them goes before it.
    across = int(np.argmax(np.abs(volume.array.strides)))
    turns = sorted(range(3), key=lambda axis: (order != 3 or axis != across, shape[axis] / volume.shape[axis]))
    return Volume(_separable(volume.array, samplers, turns, box, int16_range=int16_range, dtype=dtype), result_affine)


def _oblique(
    array: NDArray[Any],
    matrix: NDArray[np.float64],
    offset: NDArray[np.float64],
    shape: tuple[int, int, int],
    *,
    order: int,
    fill: float,
) -> NDArray[Any]:
    """Resample to a grid whose axes are not parallel; matrix and offset map its indices to those of the source."""
    source = array if order == 0 else array.astype(np.float32)
    return np.asarray(
        ndimage.affine_transform(
            source, matrix, offset, output_shape=shape, order=order, mode="grid-constant", cval=fill
        )
    )


def _separable(
    array: NDArray[Any],
    samplers: list[AxisSampler],
    turns: list[int],
    box: Box,
    *,
    int16_range: tuple[int, int] | None,
    dtype: np.dtype[Any],
) -> NDArray[Any]:
    """Resample axis by axis, in slabs.

    Args:
        array: source (i, j, k).
        samplers: one per axis.
        turns: order of the axes.
        box: part of the target grid.
        int16_range: see `resample_to_grid`.
        dtype: of the result.
    """
    # Dimensions in memory order, slowest first: arrays of NIfTI files have the opposite order of numpy's.
    layout = sorted(range(3), key=lambda axis: -abs(array.strides[axis]))
    source = array.transpose(layout)
    result = np.empty([box.shape[axis] for axis in layout], dtype)
    slowest = samplers[layout[0]]
    plane = max(int(np.prod(part.shape[1:])) for part in (source, result))
    # Slabs overlap by the reach of a position; thinner slabs would mostly repeat the work of their neighbours.
    thick = max(1, math.ceil(slowest.reach / 2), _SLAB_VOXELS // plane)

    def fill_slab(first: int) -> None:
        last = min(first + thick, result.shape[0])
        spans = list(zip(box.start_ijk, box.stop_ijk, strict=True))
        start = box.start_ijk[layout[0]]
        spans[layout[0]] = start + first, start + last
        values = source[tuple(slice(*samplers[axis].needed(*spans[axis])) for axis in layout)]
        for axis in turns:
            values = samplers[axis].sample(values, layout.index(axis), *spans[axis])
        result[first:last] = _cast(values, int16_range, dtype)

    starts = range(0, result.shape[0], thick)
    if len(starts) == 1:
        fill_slab(0)
    else:
        with ThreadPoolExecutor(_THREADS) as pool:
            list(pool.map(fill_slab, starts))
    return result.transpose(np.argsort(layout))


def _cast(values: NDArray[Any], int16_range: tuple[int, int] | None, dtype: np.dtype[Any]) -> NDArray[Any]:
    if int16_range is not None:
        values = np.clip(np.rint(values), *int16_range)
    return values.astype(dtype, copy=False)
