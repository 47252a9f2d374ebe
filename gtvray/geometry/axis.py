"""Sampling along one axis: what evenly spaced positions take from the voxels of a line."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import linalg, sparse

# Positions this near to voxel centres (in voxels) are those centres.
_EXACT = 1e-9
# A spline's weights fall to 0.27 a voxel; those left out come to less than 0.001 HU.
_SPLINE_REACH = 13
# Rows of weights done at once: they are zero but for a band, and a block is a short product of small matrices.
_BLOCK = 32
# Multiplications in one product; OpenBLAS starts threads above 4 x 65,536.
_SMALL_PRODUCT = 1 << 18


class AxisSampler:
    """Values at positions along one axis of a block of voxels, which need hold no more than is `needed`.

    Args:
        offset: first position, in voxels of the source.
        step: from one position to the next; negative where the grids run in opposite directions.
        count: number of positions.
        size: voxels of the source along the axis.
        order: 0 nearest, 1 linear, 3 the interpolating cubic spline, mirrored at the ends.
        antialias: triangle-weighted means over `step` voxels to each side where that is more than one (not for order
            0); weights beyond the border are left out.
        fill: the value of positions more than half a voxel outside; those less far out take the border's.
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
            # floor(x + 0.5) and not rint: rint's ties to even would shift every second voxel.
            self._at = np.floor(positions + 0.5).clip(0, size - 1)
        elif antialias and abs(step) > 1:
            self._reach = abs(step)
            self._means = _mean_weights(self._at, size, abs(step))
        elif order == 3 and np.abs(self._at - np.rint(self._at)).max() > _EXACT:
            self._reach = _SPLINE_REACH
            self._spline = _spline_weights(self._at, size)

    @property
    def reach(self) -> float:
        """How many voxels to each side of a position have a say in it."""
        return self._reach

    def needed(self, first: int, last: int) -> tuple[int, int]:
        """The source's voxels that positions `first` to `last` (not included) depend on, as a half-open range."""
        ends = self._at[first], self._at[last - 1]
        return max(0, math.floor(min(ends) - self._reach)), min(self._size, math.ceil(max(ends) + self._reach) + 1)

    def sample(self, values: NDArray[Any], dim: int, first: int, last: int) -> NDArray[Any]:
        """Positions `first` to `last` along a dimension of a block, which holds the range `needed` for them there.

        Returns:
            float32, or the block's own type where voxels are taken as they are.
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
            # A copy: the block may still be the source itself, and its type may not hold `fill`.
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
            # The axis in the middle: (lines before, along, lines after).
            taken = _folded(source, dim)[:, low - start : high - start]
            _banded(weights, taken, _folded(result, dim)[:, a - first : b - first])
        return result


def _folded(array: NDArray[np.float32], dim: int) -> NDArray[np.float32]:
    return array.reshape(math.prod(array.shape[:dim]), array.shape[dim], math.prod(array.shape[dim + 1 :]))


def _banded(weights: NDArray[np.float32], source: NDArray[np.float32], result: NDArray[np.float32]) -> None:
    """result[l, :, m] = weights @ source[l, :, m], in products that BLAS does not spread over threads of its own.

    Those would wait for one another wherever something else runs too, and are not needed: slabs have theirs.
    """
    width = max(8, _SMALL_PRODUCT // weights.size)
    before, _, after = source.shape
    if after == 1:
        # The axis is the last in memory: lines are the rows of a matrix.
        whole = before - before % width
        for part, count in ((slice(0, whole), width), (slice(whole, before), before - whole)):
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
    """The spline's values as a matrix (position, voxel): B-splines at the positions, times the prefilter's inverse."""
    if size == 1:
        return np.ones((len(at), 1), np.float32)
    below = np.floor(at).astype(int)
    t = at - below
    taps = ((1 - t) ** 3, 4 - 6 * t**2 + 3 * t**3, 4 - 6 * (1 - t) ** 2 + 3 * (1 - t) ** 3, t**3)
    basis = np.zeros((len(at), size))
    for shift, tap in zip((-1, 0, 1, 2), taps, strict=True):
        place = np.abs(below + shift)
        place = np.where(place > size - 1, 2 * (size - 1) - place, place)
        np.add.at(basis, (np.arange(len(at)), place), tap / 6)
    bands = np.repeat([[1 / 6], [4 / 6], [1 / 6]], size, axis=1)
    bands[0, 1] = bands[2, -2] = 2 / 6
    # The prefilter solves A c = values; weights of the values are basis A^-1, so A' is solved for basis'.
    transposed = np.stack([np.roll(bands[2], 1), bands[1], np.roll(bands[0], -1)])
    return np.ascontiguousarray(linalg.solve_banded((1, 1), transposed, basis.T).T.astype(np.float32))
