"""Which patches of a scan are run: a fixed selection, or stage by stage about the tumour. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from gtvray.config import InferenceConfig
from gtvray.inference.aggregate import LogitAccumulator
from gtvray.inference.localise import BEYOND, EMPTY, CoarsePass, RequiredPatches, Suspicion
from gtvray.inference.patches import ScanPatches

Logits = NDArray[np.float32]


@dataclass(frozen=True)
class Stage:
    """Patches that are run before the next decision.

    Attributes:
        numbers: patches of the grid, in order.
        known: logits (i, j, k) of those of them that an earlier stage ran.
        locates: the logits only show where tumour is suspected, and shape no mask.
    """

    numbers: list[int]
    known: Mapping[int, Logits] = field(default_factory=dict)
    locates: bool = False


class PatchSelection(Protocol):
    """Decides which patches of a scan are run."""

    @property
    def fallback(self) -> str | None:
        """Why the full body is run although `localised` was requested; None otherwise."""

    def first_stage(self) -> Stage:
        """The patches to begin with; called once."""

    def observe(self, number: int, logits: Logits) -> None:
        """Note the logits (i, j, k) of a patch of the current stage."""

    def next_stage(self, accumulator: LogitAccumulator) -> Stage | None:
        """The patches to run next, or None if the mask is complete.

        Args:
            accumulator: of the current stage, all of whose patches have been answered.
        """


def select_patches(
    patches: ScanPatches,
    spacing_mm: tuple[float, float, float],
    inference: InferenceConfig,
    suspicion: Suspicion | None = None,
) -> PatchSelection:
    """The selection of an inference mode.

    Args:
        patches: the patches of the scan.
        spacing_mm: of the prepared grid.
        inference: its mode, and the threshold of the mask.
        suspicion: on the prepared grid, for mode `localised`; None for the network's own coarse pass.
    """
    if inference.mode == "exhaustive":
        return FixedSelection(list(range(len(patches.grid))))
    if inference.mode == "body":
        return FixedSelection(patches.on_body())
    if suspicion is not None:
        suspected = np.zeros(patches.shape, bool)
        suspected[patches.inner.slices] = suspicion.suspected
        suspicion = Suspicion(suspected, suspicion.highest)
    return Localisation(patches, spacing_mm, inference.threshold, suspicion)


class FixedSelection:
    """One stage that is known from the start.

    Args:
        numbers: patches of the grid, in order.
    """

    fallback: str | None = None

    def __init__(self, numbers: list[int]) -> None:
        self._numbers = numbers

    def first_stage(self) -> Stage:
        """As `PatchSelection.first_stage`."""
        return Stage(self._numbers)

    def observe(self, number: int, logits: Logits) -> None:
        """As `PatchSelection.observe`."""

    def next_stage(self, accumulator: LogitAccumulator) -> Stage | None:  # noqa: ARG002  # the selection is fixed
        """As `PatchSelection.next_stage`."""
        return None


class Localisation:
    """Patches about the suspected tumour; the full body where that is not reliable.

    Stages: the coarse pass unless there is a suspicion already; the patches that the suspected voxels require; once
    more, wider, if the mask reaches the border of the search; then the body. Logits are kept until the body is run, so
    that no patch runs twice.

    Args:
        patches: the patches of the scan.
        spacing_mm: of the prepared grid.
        threshold: a voxel whose probability exceeds it is marked.
        suspicion: on the padded grid; None for a coarse pass.
    """

    def __init__(
        self,
        patches: ScanPatches,
        spacing_mm: tuple[float, float, float],
        threshold: float,
        suspicion: Suspicion | None,
    ) -> None:
        self.fallback: str | None = None
        self._body, self._shape, self._threshold = patches.on_body(), patches.shape, threshold
        self._required = RequiredPatches(patches.grid, self._body, patches.weights, spacing_mm)
        self._suspicion = suspicion
        self._coarse = None if suspicion else CoarsePass(patches.grid, self._body, patches.shape, threshold)
        self._numbers: list[int] = []
        self._known: dict[int, Logits] = {}
        self._widened = False

    def first_stage(self) -> Stage:
        """As `PatchSelection.first_stage`."""
        if self._suspicion is not None:
            return self._search(self._suspicion)
        assert self._coarse is not None
        return Stage(self._coarse.numbers, locates=True)

    def observe(self, number: int, logits: Logits) -> None:
        """As `PatchSelection.observe`."""
        if self._coarse is not None:
            self._coarse.add(number, logits)
        if self.fallback is None:
            self._known[number] = logits.copy()

    def next_stage(self, accumulator: LogitAccumulator) -> Stage | None:
        """As `PatchSelection.next_stage`."""
        if self._coarse is not None:
            suspicion, self._coarse = self._coarse.suspicion(), None
            return self._search(suspicion)
        if self.fallback is not None:
            return None
        marked = accumulator.marked(self._shape)
        if marked is None or not self._required.is_beyond(marked, self._numbers):
            return None
        if self._widened:
            return self._full_body(BEYOND)
        self._widened = True
        return self._run(sorted({*self._numbers, *self._required.around(marked)}))

    def _search(self, suspicion: Suspicion) -> Stage:
        numbers = self._required.around(suspicion.suspected)
        reason = suspicion.fallback_reason(self._threshold) or (None if numbers else EMPTY)
        return self._full_body(reason) if reason else self._run(numbers)

    def _full_body(self, reason: str) -> Stage:
        self.fallback = reason
        return self._run(self._body)

    def _run(self, numbers: list[int]) -> Stage:
        self._numbers = numbers
        return Stage(numbers, dict(self._known))
