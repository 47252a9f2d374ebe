"""The coarse pass of `localised` inference: where to look closely, and when not to trust it.

The bundle's own network sees the body in patches that hardly overlap, about a quarter of those of `body`. Wherever it
suspects tumour, every patch of `body` that has a say there is run as well, so within that region the answer is that of
`body` to the bit. What is not like that is not kept: the whole body is looked at instead.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gtvray.inference.schedule import PatchGrid

# Near its border a patch is less sure of itself, and coarse patches have their borders anywhere.
SUSPECT = 0.2
SURE = 0.5
MARGIN_MM = 6.0

EMPTY = "the coarse pass found nothing"
UNSURE = "the coarse pass was unsure"
BEYOND = "the mask reached the border of what was looked at"


class CoarsePass:
    """What the coarse patches of one scan say; their answers are kept, to be used again.

    Args:
        grid: all patches of the scan.
        body: numbers of those that touch the body, in order.
        shape: of the padded grid.
        spacing_mm: of its voxels.
        threshold: above it a voxel will be marked.

    Attributes:
        body: as given.
        numbers: the coarse patches, in order.
        answers: tumour probability (i, j, k) by number.
    """

    def __init__(
        self,
        grid: PatchGrid,
        body: list[int],
        shape: tuple[int, ...],
        spacing_mm: tuple[float, float, float],
        threshold: float,
    ) -> None:
        self._grid, self.body = grid, body
        self._suspect_above, self._sure_above = min(SUSPECT, threshold), max(SURE, threshold)
        i, j, k = (round(MARGIN_MM / spacing) for spacing in spacing_mm)
        self._margin_ijk = i, j, k
        self._suspect = np.zeros(shape, dtype=bool)
        self._highest = 0.0
        self.numbers = sorted(set(grid.sparse()) & set(body))
        self.answers: dict[int, NDArray[np.float32]] = {}

    def add(self, number: int, probability: NDArray[np.float32]) -> None:
        """The answer to a coarse patch."""
        self.answers[number] = probability.copy()
        self._suspect[self._grid.slices(number)] |= probability > self._suspect_above
        self._highest = max(self._highest, float(probability.max()))

    def region(self) -> tuple[list[int], str | None]:
        """The patches to run, in order, and why they are all of the body's if they are."""
        if self._highest <= self._suspect_above:
            return self.body, EMPTY
        if self._highest <= self._sure_above:
            return self.body, UNSURE
        return self._within_body(self._suspect, self._margin_ijk), None

    def is_beyond(self, marked: NDArray[np.bool_], run: list[int]) -> bool:
        """Whether a patch that was not run has a say in a marked voxel or next to one."""
        return not set(self._within_body(marked, (1, 1, 1))) <= set(run)

    def _within_body(self, mask: NDArray[np.bool_], margin_ijk: tuple[int, int, int]) -> list[int]:
        return sorted(set(self._grid.touching(mask, margin_ijk)) & set(self.body))
