"""Resampling from one grid to another; separable where the grids' axes are parallel, which is nearly always.

Parallel grids are done in slabs across the axis that is slowest in memory, two at a time, so that no copy of the whole
volume in float32 exists, only the result in the type that is asked for.
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

# Off-diagonal terms below this (in voxels over a whole axis of 1,000) are rounding, not rotation.
_PARALLEL_TOLERANCE = 1e-6
# What a slab holds, counted on the finer of its two grids; several such arrays exist a thread.
_SLAB_VOXELS = 1 << 20
_THREADS = 2


def resampled_grid(volume: Volume, spacing_mm: tuple[float, float, float]) -> tuple[Affine, tuple[int, int, int]]:
    """The grid of another spacing with the same axes and the same centre, covering the volume's extent.

    Returns:
        the affine and the shape.
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
    """The volume's values at the voxel centres of another grid.

    Points up to half a voxel outside the volume take the border's value; points further out take `fill`. Where the
    grids' axes are not parallel, values fade from the border's to `fill` over one voxel instead.

    Args:
        volume: what to sample, any dtype.
        affine: the target grid's affine.
        shape: the target grid's shape.
        order: 0 nearest (dtype kept), 1 linear, 3 the interpolating cubic spline (float32).
        fill: value outside the volume.
        antialias: on axes that get coarser, weigh all voxels within one target voxel of a point, falling linearly to
            its ends (order 1 or 3 and parallel axes only). Point samples keep all of the noise; this keeps the share
            that averaging leaves.
        int16_range: (lowest, highest); the result is clipped to it and rounded to int16 instead of float32.
        within: only this box of the target grid is made and returned, with the values it has in the whole.

    Returns:
        the values; in memory they lie in the order of the source's axes.
    """
    box = within or Box.whole(shape)
    result_affine = affine.copy()
    result_affine[:3, 3] += affine[:3, :3] @ np.asarray(box.start_ijk, dtype=np.float64)
    dtype = volume.array.dtype if order == 0 else np.dtype(np.float32 if int16_range is None else np.int16)
    to_source = np.linalg.inv(volume.affine) @ affine
    matrix, offset = to_source[:3, :3], to_source[:3, 3]
    if np.abs(matrix - np.diag(np.diag(matrix))).max() > _PARALLEL_TOLERANCE:
        source = volume.array if order == 0 else volume.array.astype(np.float32)
        values = ndimage.affine_transform(
            source, matrix, offset, output_shape=shape, order=order, mode="grid-constant", cval=fill
        )
        return Volume(_cast(values[box.slices], int16_range, dtype), result_affine)
    samplers = [
        AxisSampler(offset[axis], matrix[axis, axis], shape[axis], n, order=order, antialias=antialias, fill=fill)
        for axis, n in enumerate(volume.shape)
    ]
    # The axis that shrinks most goes first, so that the later ones have less to do; a spline's slabs overlap by so
    # much that the axis they lie across goes before.
    across = int(np.argmax(np.abs(volume.array.strides)))
    turns = sorted(range(3), key=lambda axis: (order != 3 or axis != across, shape[axis] / volume.shape[axis]))
    return Volume(_separable(volume.array, samplers, turns, box, int16_range=int16_range, dtype=dtype), result_affine)


def _separable(
    array: NDArray[Any],
    samplers: list[AxisSampler],
    turns: list[int],
    box: Box,
    *,
    int16_range: tuple[int, int] | None,
    dtype: np.dtype[Any],
) -> NDArray[Any]:
    # Slowest axis first, as the array lies in memory: NIfTI files are written the other way round than numpy's arrays.
    layout = sorted(range(3), key=lambda axis: -abs(array.strides[axis]))
    lying = array.transpose(layout)
    result = np.empty([box.shape[axis] for axis in layout], dtype)
    slowest = samplers[layout[0]]
    plane = max(int(np.prod(part.shape[1:])) for part in (lying, result))
    # Slabs overlap by what positions reach beyond them; thinner ones would mostly do each other's work again.
    thick = max(1, math.ceil(slowest.reach / 2), _SLAB_VOXELS // plane)

    def fill_slab(first: int) -> None:
        last = min(first + thick, result.shape[0])
        spans = list(zip(box.start_ijk, box.stop_ijk, strict=True))
        start = box.start_ijk[layout[0]]
        spans[layout[0]] = start + first, start + last
        values = lying[tuple(slice(*samplers[axis].needed(*spans[axis])) for axis in layout)]
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
