"""Resampling from one grid to another; separable where the grids' axes are parallel, which is nearly always."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, sparse

from gtvray.geometry.affine import Affine
from gtvray.geometry.volume import Volume

# Off-diagonal terms below this (in voxels over a whole axis of 1,000) are rounding, not rotation.
_PARALLEL_TOLERANCE = 1e-6


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
) -> Volume:
    """The volume's values at the voxel centres of another grid.

    Points up to half a voxel outside the volume take the border's value; points further out take `fill`. Where the
    grids' axes are not parallel, values fade from the border's to `fill` over one voxel instead.

    Args:
        volume: what to sample, any dtype.
        affine: the target grid's affine.
        shape: the target grid's shape.
        order: 0 nearest (dtype kept), 1 linear (float32).
        fill: value outside the volume.
        antialias: on axes that get coarser, weigh all voxels within one target voxel of a point, falling linearly to
            its ends (order 1 and parallel axes only). Point samples keep all of the noise; this keeps the share that
            averaging leaves.
    """
    to_source = np.linalg.inv(volume.affine) @ affine
    matrix, offset = to_source[:3, :3], to_source[:3, 3]
    if np.abs(matrix - np.diag(np.diag(matrix))).max() <= _PARALLEL_TOLERANCE:
        values: NDArray[Any] = volume.array
        # The axis that shrinks most goes first, so that the later ones have less to do.
        for axis in sorted(range(3), key=lambda a: shape[a] / volume.shape[a]):
            positions = np.arange(shape[axis]) * matrix[axis, axis] + offset[axis]
            step = abs(float(matrix[axis, axis]))
            if order == 0:
                sampled = _nearest(values, axis, positions)
            elif antialias and step > 1:
                sampled = _averaged(values, axis, positions, step)
            else:
                sampled = _linear(values, axis, positions)
            values = _filled_outside(sampled, axis, positions, values.shape[axis], fill)
        return Volume(np.ascontiguousarray(values), affine)
    source = volume.array if order == 0 else volume.array.astype(np.float32)
    values = ndimage.affine_transform(
        source, matrix, offset, output_shape=shape, order=order, mode="grid-constant", cval=fill
    )
    return Volume(values, affine)


def _nearest(values: NDArray[Any], axis: int, positions: NDArray[np.float64]) -> NDArray[Any]:
    # floor(x + 0.5) and not rint: rint's ties to even would shift every second voxel.
    nearest = np.floor(positions + 0.5).astype(np.intp).clip(0, values.shape[axis] - 1)
    return np.asarray(np.take(values, nearest, axis=axis))


def _linear(values: NDArray[Any], axis: int, positions: NDArray[np.float64]) -> NDArray[np.float32]:
    last = values.shape[axis] - 1
    inside = np.clip(positions, 0, last)
    low = np.floor(inside).astype(np.intp)
    weight = (inside - low).astype(np.float32)
    result = np.take(values, low, axis=axis).astype(np.float32)
    if weight.any():
        upper = np.take(values, np.minimum(low + 1, last), axis=axis)
        result += (upper - result) * weight.reshape([-1 if a == axis else 1 for a in range(3)])
    return result


def _averaged(values: NDArray[Any], axis: int, positions: NDArray[np.float64], step: float) -> NDArray[np.float32]:
    """Triangle-weighted means over `step` voxels to each side; weights beyond the border are left out."""
    apart = np.abs(np.arange(values.shape[axis])[None, :] - np.clip(positions, 0, values.shape[axis] - 1)[:, None])
    weights = np.maximum(0.0, 1.0 - apart / step)
    matrix = sparse.csr_array((weights / weights.sum(axis=1, keepdims=True)).astype(np.float32))
    front = np.moveaxis(values, axis, 0).astype(np.float32)
    means = matrix @ front.reshape(front.shape[0], -1)
    return np.moveaxis(means.reshape(-1, *front.shape[1:]), 0, axis)


def _filled_outside(
    sampled: NDArray[Any], axis: int, positions: NDArray[np.float64], size: int, fill: float
) -> NDArray[Any]:
    """`fill` where a position is more than half a voxel outside the source's `size` voxels."""
    outside = (positions < -0.5 - 1e-6) | (positions > size - 0.5 + 1e-6)
    if outside.any():
        index: list[Any] = [slice(None)] * 3
        index[axis] = outside
        sampled[tuple(index)] = fill
    return sampled
