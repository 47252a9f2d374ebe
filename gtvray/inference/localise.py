"""What `localised` inference looks at: the patches that matter where something is suspected, and when not to.

Tumour is suspected by the bundle's locator, a model of its own that sees the body at a coarser spacing; or, where a
bundle has none, by its own network on patches that hardly overlap. There, and in a margin around it, those patches of
`exhaustive` are run that have a say: whose weights a voxel cannot do without. A mask that reaches the border of what
was looked at has it widened once; then the whole body is looked at.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from gtvray.geometry import Box
from gtvray.inference.schedule import PatchGrid, Slices

# Near its border a patch is less sure of itself, and coarse patches have their borders anywhere; a locator's voxels are
# large. Both are to suspect too much rather than too little.
SUSPECT = 0.2
SURE = 0.5
MARGIN_MM = 6.0
# Weights fall steeply from a patch's centre, and most patches that touch a place have next to no say in it. Patches are
# left out as long as no voxel loses more than this share of all the weights it has with all that touch the body.
DROPPED_SHARE = 0.2

EMPTY = "the coarse pass found nothing"
UNSURE = "the coarse pass was unsure"
BEYOND = "the mask reached the border of what was looked at"


@dataclass(frozen=True)
class Suspicion:
    """Where tumour is suspected.

    Attributes:
        suspected: bool (i, j, k), on the grid of the prepared scan.
        highest: the highest probability there is anywhere.
    """

    suspected: NDArray[np.bool_]
    highest: float

    def doubt(self, threshold: float) -> str | None:
        """Why it is not to be relied on, if so.

        Args:
            threshold: above it a voxel will be marked.
        """
        if self.highest <= suspect_above(threshold):
            return EMPTY
        return UNSURE if self.highest <= max(SURE, threshold) else None


def suspect_above(threshold: float) -> float:
    """The probability from which a voxel is suspected, for a model that marks above `threshold`."""
    return min(SUSPECT, threshold)


class CoarsePass:
    """The network's own answers to patches that hardly overlap; they are kept, to be used again.

    Args:
        grid: all patches of the scan.
        body: numbers of those that touch the body.
        shape: of the padded grid.
        threshold: above it a voxel will be marked.

    Attributes:
        numbers: the coarse patches, in order.
        answers: logits of the tumour (i, j, k) by number.
    """

    def __init__(self, grid: PatchGrid, body: list[int], shape: tuple[int, ...], threshold: float) -> None:
        self._grid, self._above = grid, suspect_above(threshold)
        self._suspected = np.zeros(shape, dtype=bool)
        self._highest = 0.0
        self.numbers = sorted(set(grid.sparse()) & set(body))
        self.answers: dict[int, NDArray[np.float32]] = {}

    def add(self, number: int, logits: NDArray[np.float32]) -> None:
        """The answer to a coarse patch."""
        self.answers[number] = logits.copy()
        probability = expit(logits)
        self._suspected[self._grid.slices(number)] |= probability > self._above
        self._highest = max(self._highest, float(probability.max()))

    def suspicion(self) -> Suspicion:
        """What the coarse patches say, on the padded grid."""
        return Suspicion(self._suspected, self._highest)


class CloseLook:
    """Which patches a place cannot do without.

    Args:
        grid: all patches of the scan.
        body: numbers of those that touch the body, in order.
        weights: of a voxel by its place in the patch, (i, j, k).
        spacing_mm: of the grid's voxels.
    """

    def __init__(
        self,
        grid: PatchGrid,
        body: list[int],
        weights: NDArray[np.float32],
        spacing_mm: tuple[float, float, float],
    ) -> None:
        self._grid, self.body, self._weights = grid, body, weights
        i, j, k = (round(MARGIN_MM / spacing) for spacing in spacing_mm)
        self._margin_ijk = i, j, k

    def around(self, place: NDArray[np.bool_]) -> list[int]:
        """The patches to run for a place and the margin around it, in order.

        Args:
            place: bool (i, j, k) on the padded grid.
        """
        box = Box.around(place)
        if box is None:
            return []
        near = box.grown(self._margin_ijk, place.shape)
        return self._needed(_grown(place[near.slices], self._margin_ijk), near)

    def is_beyond(self, marked: NDArray[np.bool_], run: list[int]) -> bool:
        """Whether a voxel that is marked, or one next to it, did without a patch that it cannot do without."""
        box = Box.around(marked)
        if box is None:
            return False
        near = box.grown((1, 1, 1), marked.shape)
        place = _grown(marked[near.slices], (1, 1, 1))
        total, shares = self._shares(near)
        left_out = np.zeros(near.shape, np.float32)
        for number in set(shares) - set(run):
            left_out[shares[number][0]] += shares[number][1]
        return bool((left_out[place] > DROPPED_SHARE * total[place]).any())

    def _needed(self, place: NDArray[np.bool_], near: Box) -> list[int]:
        total, shares = self._shares(near)
        allowed = np.where(place, DROPPED_SHARE * total, np.inf).astype(np.float32)
        said = {
            number: float(np.max(weights / total[inside], where=place[inside], initial=0.0))
            for number, (inside, weights) in shares.items()
        }
        kept = []
        # Those with the least say go first, as long as every voxel can do without all that have gone.
        for number in sorted(said, key=said.__getitem__):
            inside, weights = shares[number]
            if said[number] == 0.0:
                continue
            if (weights <= allowed[inside]).all():
                allowed[inside] -= weights
            else:
                kept.append(number)
        return sorted(kept)

    def _shares(self, near: Box) -> tuple[NDArray[np.float32], dict[int, tuple[Slices, NDArray[np.float32]]]]:
        """In a box of the grid: the weights of all patches, and of each its place in the box and its own weights."""
        total, shares = np.zeros(near.shape, np.float32), {}
        for number in self.body:
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


def _grown(place: NDArray[np.bool_], margin_ijk: tuple[int, int, int]) -> NDArray[np.bool_]:
    """A place with the voxels within a margin of it along each axis."""
    for axis, margin in enumerate(margin_ijk):
        grown = place.copy()
        moved, still = np.moveaxis(place, axis, 0), np.moveaxis(grown, axis, 0)
        for step in range(1, margin + 1):
            still[step:] |= moved[:-step]
            still[:-step] |= moved[step:]
        place = grown
    return place
