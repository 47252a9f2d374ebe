"""Statistics by which patches are compared; only numpy, which the environment of every contestant has."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

FIGURES = ("mean", "deviation", "q05", "q50", "q95", "foreground")
_QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9)


def wide_of(patch: int) -> int:
    """Size that nnU-Net reads for a patch that may be rotated by 30 degrees about each axis."""
    return int(patch * (np.cos(np.pi / 6) + np.sin(np.pi / 6)) / 0.85)


def describe(image: NDArray[Any], mask: NDArray[Any]) -> list[float]:
    """Statistics of one patch, intensities clipped to 0..1, in the order of FIGURES."""
    cut = np.clip(image, 0, 1)
    return [
        float(cut.mean()),
        float(cut.std()),
        *np.quantile(cut, (0.05, 0.5, 0.95)).tolist(),
        float((mask > 0).mean()),
    ]


def timed(batch: Callable[[], tuple[Any, Any]], batches: int) -> dict[str, Any]:
    """Time a number of batches, then draw as many again for their statistics.

    Args:
        batch: returns images (b, 1, i, j, k) and masks of the same shape.
        batches: number of batches.
    """
    for _ in range(max(4, batches // 4)):
        batch()
    began, began_cpu = time.perf_counter(), time.process_time()
    size = sum(len(batch()[0]) for _ in range(batches))
    seconds, cpu_s = time.perf_counter() - began, time.process_time() - began_cpu
    rows = []
    for _ in range(batches):
        images, masks = (np.asarray(part) for part in batch())
        rows += [describe(image, mask) for image, mask in zip(images, masks, strict=True)]
    return {"patches": size, "seconds": seconds, "cpu_s": cpu_s, "rows": rows}


def difference(one: Any, other: Any) -> list[float]:
    """Largest difference between the same quantiles of two samples, per column."""
    gaps = np.quantile(one, _QUANTILES, axis=0) - np.quantile(other, _QUANTILES, axis=0)
    return np.round(np.abs(gaps).max(axis=0), 4).reshape(-1).tolist()
