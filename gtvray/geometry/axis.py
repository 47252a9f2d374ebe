"""Sampling along one axis at evenly spaced positions."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import linalg, sparse

# Positions this close to voxel centres (in voxels) count as exact.
_EXACT = 1e-9
# The weights of a spline decay by a factor of 0.27 per voxel; those omitted sum to less than 0.001 HU.
_SPLINE_REACH = 13
# Rows of weights per product: the weights form a band, so that a block of rows needs few columns.
_BLOCK = 32
# Multiplications in one product; OpenBLAS starts threads above 4 x 65,536.
_SMALL_PRODUCT = 1 << 18


class AxisSampler:
    """Sample values along one axis of a block of voxels, which only has to contain the range `needed`.

    Args:
        offset: first position, in voxels of the source.
        step: distance between positions; negative if the grids have opposite directions.
        count: number of positions.
        size: voxels of the source along the axis.
        order: 0 nearest, 1 linear, 3 the interpolating cubic spline, mirrored at the ends.
        antialias: take triangle-weighted means over `step` voxels to each side if that is more than one (not for order
            0); weights beyond the border are omitted.
        fill: value of positions more than half a voxel outside; positions closer to the border take its value.
    """

    def __init__(
        self, offset: float, step: float, count: int, size: int, *, order: int, antialias: bool, fill: float
    ) -> None:
        positions = np.arange(count) * step + offset
        self._size, self._order, self._fill = size, order, fill
        self._outside = (positions < -0.5 - 1e-6) | (positions > size - 0.5 + 1e-6)
        self._at = np.clip(positions, 0, size - 1)
        self._reach = 1.0
        self._means: Any = None
        self._spline: NDArray[np.float32] | None = None
        if order == 0:
            # floor(x + 0.5) rather than rint, which rounds ties to even and would shift every second voxel.
            self._at = np.floor(positions + 0.5).clip(0, size - 1)
        elif antialias and abs(step) > 1:
            self._reach = abs(step)
            self._means = _mean_weights(self._at, size, abs(step))
        elif order == 3 and np.abs(self._at - np.rint(self._at)).max() > _EXACT:
            self._reach = _SPLINE_REACH
            self._spline = _spline_weights(self._at, size)

    @property
    def reach(self) -> float:
        """Voxels to each side of a position that its value depends on."""
        return self._reach

    def needed(self, first: int, last: int) -> tuple[int, int]:
        """The half-open range of source voxels that positions `first` to `last` (excluded) depend on."""
        ends = self._at[first], self._at[last - 1]
        return max(0, math.floor(min(ends) - self._reach)), min(self._size, math.ceil(max(ends) + self._reach) + 1)

    def sample(self, values: NDArray[Any], dim: int, first: int, last: int) -> NDArray[Any]:
        """Sample positions `first` to `last` (excluded) along a dimension of a block.

        Args:
            values: the block; along `dim` it contains the range `needed` for these positions.
            dim: dimension of the block.
            first: first position.
            last: end of the positions, excluded.

        Returns:
            float32, or the dtype of the block where voxels are copied unchanged.
        """
        start, stop = self.needed(first, last)
        if self._means is not None:
            sampled = _multiplied(self._means[first:last, start:stop], values, dim)
        elif self._spline is not None:
            sampled = self._splined(values, dim, first, last)
        else:
            sampled = self._linear(values, dim, self._at[first:last] - start)
        outside = self._outside[first:last]
        if outside.any():
            # A copy: the array may be the source itself, and its dtype may not represent `fill`.
            sampled = sampled.astype(values.dtype if self._order == 0 else np.float32)
            sampled[(slice(None),) * dim + (outside,)] = self._fill
        return sampled

    def _linear(self, values: NDArray[Any], dim: int, at: NDArray[np.float64]) -> NDArray[Any]:
        low = np.floor(at).astype(np.intp)
        weight = (at - low).astype(np.float32)
        if self._order == 0 or not weight.any():
            return np.asarray(np.take(values, low, axis=dim))
        result = np.take(values, low, axis=dim).astype(np.float32)
        upper = np.take(values, np.minimum(low + 1, values.shape[dim] - 1), axis=dim)
        further = upper - result
        further *= weight.reshape([-1 if d == dim else 1 for d in range(3)])
        result += further
        return result

    def _splined(self, values: NDArray[Any], dim: int, first: int, last: int) -> NDArray[np.float32]:
        assert self._spline is not None
        source = np.ascontiguousarray(values, dtype=np.float32)
        start, _ = self.needed(first, last)
        result = np.empty([last - first if d == dim else n for d, n in enumerate(values.shape)], np.float32)
        for a in range(first, last, _BLOCK):
            b = min(a + _BLOCK, last)
            low, high = self.needed(a, b)
            weights = self._spline[a:b, low:high]
            # Folded to (dimensions before, axis, dimensions after).
            taken = _folded(source, dim)[:, low - start : high - start]
            _matmul_in_chunks(weights, taken, _folded(result, dim)[:, a - first : b - first])
        return result


def _folded(array: NDArray[np.float32], dim: int) -> NDArray[np.float32]:
    return array.reshape(math.prod(array.shape[:dim]), array.shape[dim], math.prod(array.shape[dim + 1 :]))


def _matmul_in_chunks(weights: NDArray[np.float32], source: NDArray[np.float32], result: NDArray[np.float32]) -> None:
    """Compute result[l, :, m] = weights @ source[l, :, m] in products that are too small for BLAS threads.

    BLAS threads would wait for each other on a busy machine, and slabs are already distributed over threads.
    """
    width = max(8, _SMALL_PRODUCT // weights.size)
    before, _, after = source.shape
    if after == 1:
        # The axis is the fastest in memory: lines are the rows of a matrix.
        even = before - before % width
        for part, count in ((slice(0, even), width), (slice(even, before), before - even)):
            if count:
                rows = source[part, :, 0].reshape(-1, count, source.shape[1])
                np.matmul(rows, weights.T, out=result[part, :, 0].reshape(-1, count, result.shape[1]))
        return
    for column in range(0, after, width):
        columns = slice(column, column + width)
        np.matmul(weights, source[:, :, columns], out=result[:, :, columns])


def _mean_weights(at: NDArray[np.float64], size: int, step: float) -> Any:
    """A sparse matrix (position, voxel)."""
    apart = np.abs(np.arange(size)[None, :] - at[:, None])
    weights = np.maximum(0.0, 1.0 - apart / step)
    return sparse.csr_array((weights / weights.sum(axis=1, keepdims=True)).astype(np.float32))


def _multiplied(matrix: Any, values: NDArray[Any], dim: int) -> NDArray[np.float32]:
    front = np.moveaxis(values, dim, 0).astype(np.float32)
    product = matrix @ front.reshape(front.shape[0], -1)
    return np.moveaxis(product.reshape(-1, *front.shape[1:]), 0, dim)


def _spline_weights(at: NDArray[np.float64], size: int) -> NDArray[np.float32]:
    """The interpolating spline as a matrix (position, voxel): B-splines times the inverse prefilter."""
    if size == 1:
        return np.ones((len(at), 1), np.float32)
    below = np.floor(at).astype(int)
    t = at - below
    taps = ((1 - t) ** 3, 4 - 6 * t**2 + 3 * t**3, 4 - 6 * (1 - t) ** 2 + 3 * (1 - t) ** 3, t**3)
    basis = np.zeros((len(at), size))
    for shift, tap in zip((-1, 0, 1, 2), taps, strict=True):
        # Mirrored at both ends.
        voxel = np.abs(below + shift)
        voxel = np.where(voxel > size - 1, 2 * (size - 1) - voxel, voxel)
        np.add.at(basis, (np.arange(len(at)), voxel), tap / 6)
    bands = np.repeat([[1 / 6], [4 / 6], [1 / 6]], size, axis=1)
    bands[0, 1] = bands[2, -2] = 2 / 6
    # The prefilter solves A c = values; weights of the values are basis A^-1, so A' is solved for basis'.
    transposed = np.stack([np.roll(bands[2], 1), bands[1], np.roll(bands[0], -1)])
    return np.ascontiguousarray(linalg.solve_banded((1, 1), transposed, basis.T).T.astype(np.float32))
