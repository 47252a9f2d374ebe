"""Where `localised` inference runs patches: those that suspected voxels require. Torch-free.

Tumour is suspected by the bundle's locator, a second model on a coarser grid, or, in a bundle without one, by its own
network on patches that hardly overlap. In the suspected region and a margin around it, those patches of `exhaustive`
are run whose weight in some voxel is too large to omit. If the mask reaches the border of that region, the region is
widened once; after that the full body is run.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from gtvray.geometry import Box
from gtvray.inference.schedule import PatchGrid, Slices

# A patch is less certain near its border, coarse patches have their borders anywhere, and a locator's voxels are large:
# both should suspect too much rather than too little.
SUSPECT = 0.2
SURE = 0.5
MARGIN_MM = 6.0
# Weights fall steeply from the centre of a patch, so most patches that touch a voxel hardly count there. Patches are
# omitted as long as no voxel loses more than this share of its weights over all patches that touch the body.
DROPPED_SHARE = 0.2

EMPTY = "the coarse pass found nothing"
UNSURE = "the coarse pass was unsure"
BEYOND = "the mask reached the border of the region searched"


@dataclass(frozen=True)
class Suspicion:
    """Where tumour is suspected.

    Attributes:
        suspected: bool (i, j, k), on the grid of the prepared scan.
        highest: highest probability anywhere in the scan.
    """

    suspected: NDArray[np.bool_]
    highest: float

    def fallback_reason(self, threshold: float) -> str | None:
        """Why the suspicion is not reliable, or None if it is.

        Args:
            threshold: a voxel whose probability exceeds it is marked.
        """
        if self.highest <= suspect_above(threshold):
            return EMPTY
        return UNSURE if self.highest <= max(SURE, threshold) else None


def suspect_above(threshold: float) -> float:
    """The probability above which a voxel is suspected, for a model that marks above `threshold`."""
    return min(SUSPECT, threshold)


class CoarsePass:
    """The suspicion of the network itself, from patches that hardly overlap.

    Args:
        grid: all patches of the scan.
        body: patches that touch the body.
        shape: of the padded grid.
        threshold: a voxel whose probability exceeds it is marked.

    Attributes:
        numbers: the coarse patches, in order.
    """

    def __init__(self, grid: PatchGrid, body: list[int], shape: tuple[int, ...], threshold: float) -> None:
        self._grid, self._above = grid, suspect_above(threshold)
        self._suspected = np.zeros(shape, dtype=bool)
        self._highest = 0.0
        self.numbers = sorted(set(grid.sparse()) & set(body))

    def add(self, number: int, logits: NDArray[np.float32]) -> None:
        """Add the logits (i, j, k) of a coarse patch."""
        probability = expit(logits)
        self._suspected[self._grid.slices(number)] |= probability > self._above
        self._highest = max(self._highest, float(probability.max()))

    def suspicion(self) -> Suspicion:
        """The suspicion of all patches added, on the padded grid."""
        return Suspicion(self._suspected, self._highest)


class RequiredPatches:
    """Which patches the probability of a region depends on.

    Args:
        grid: all patches of the scan.
        body: patches that touch the body, in order.
        weights: weight of each voxel of a patch, (i, j, k).
        spacing_mm: of the grid.
    """

    def __init__(
        self,
        grid: PatchGrid,
        body: list[int],
        weights: NDArray[np.float32],
        spacing_mm: tuple[float, float, float],
    ) -> None:
        self._grid, self._body, self._weights = grid, body, weights
        i, j, k = (round(MARGIN_MM / spacing) for spacing in spacing_mm)
        self._margin_ijk = i, j, k

    def around(self, region: NDArray[np.bool_]) -> list[int]:
        """The patches that a region and the margin around it require, in order.

        Args:
            region: bool (i, j, k) on the padded grid.
        """
        box = Box.around(region)
        if box is None:
            return []
        near = box.grown(self._margin_ijk, region.shape)
        return self._select(_dilated(region[near.slices], self._margin_ijk), near)

    def is_beyond(self, marked: NDArray[np.bool_], run: list[int]) -> bool:
        """Whether a marked voxel, or a neighbour of one, requires a patch that was not run.

        Args:
            marked: bool (i, j, k) on the padded grid.
            run: patches that were run.
        """
        box = Box.around(marked)
        if box is None:
            return False
        near = box.grown((1, 1, 1), marked.shape)
        region = _dilated(marked[near.slices], (1, 1, 1))
        total, shares = self._shares(near)
        omitted = np.zeros(near.shape, np.float32)
        for number in set(shares) - set(run):
            omitted[shares[number][0]] += shares[number][1]
        return bool((omitted[region] > DROPPED_SHARE * total[region]).any())

    def _select(self, region: NDArray[np.bool_], near: Box) -> list[int]:
        """Omit patches, those that count least first, until a further one would take too much from some voxel."""
        total, shares = self._shares(near)
        allowed = np.where(region, DROPPED_SHARE * total, np.inf).astype(np.float32)
        largest_share = {
            number: float(np.max(weights / total[inside], where=region[inside], initial=0.0))
            for number, (inside, weights) in shares.items()
        }
        kept = []
        for number in sorted(largest_share, key=largest_share.__getitem__):
            inside, weights = shares[number]
            if largest_share[number] == 0.0:
                continue
            if (weights <= allowed[inside]).all():
                allowed[inside] -= weights
            else:
                kept.append(number)
        return sorted(kept)

    def _shares(self, near: Box) -> tuple[NDArray[np.float32], dict[int, tuple[Slices, NDArray[np.float32]]]]:
        """Weights in a box of the grid: the sum over patches, and of each patch its slices of the box and its own."""
        total, shares = np.zeros(near.shape, np.float32), {}
        for number in self._body:
            spans = self._grid.slices(number)
            patch = Box(*zip(*((span.start, span.stop) for span in spans), strict=True))
            common = patch.overlap(near)
            if common is None:
                continue
            inside = common.moved(near.start_ijk).slices
            weights = self._weights[common.moved(patch.start_ijk).slices]
            total[inside] += weights
            shares[number] = inside, weights
        return total, shares


def _dilated(region: NDArray[np.bool_], margin_ijk: tuple[int, int, int]) -> NDArray[np.bool_]:
    """A region with the voxels within a margin of it along each axis."""
    for axis, margin in enumerate(margin_ijk):
        dilated = region.copy()
        source, target = np.moveaxis(region, axis, 0), np.moveaxis(dilated, axis, 0)
        for step in range(1, margin + 1):
            target[step:] |= source[:-step]
            target[:-step] |= source[step:]
        region = dilated
    return region
