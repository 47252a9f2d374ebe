"""The segmentation of one scan: an iterator of patches, an accumulator of their logits, and a selection. Torch-free."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gtvray.config import InferenceConfig, PreprocessingConfig
from gtvray.geometry import Volume, largest_component
from gtvray.inference.aggregate import LogitAccumulator
from gtvray.inference.localise import Suspicion
from gtvray.inference.patches import Patch, PatchIterator, ScanPatches
from gtvray.inference.schedule import PatchGrid
from gtvray.inference.selection import Stage, select_patches
from gtvray.inference.uncertainty import MaskUncertainty, uncertainty_of_mask
from gtvray.preprocessing import Prepared, restore_mask

Forward = Callable[[Sequence[NDArray[np.float32]]], NDArray[np.float32]]


@dataclass(frozen=True)
class Coverage:
    """How much of a scan was run.

    Attributes:
        mode: mode that shaped the mask.
        fallback: why it is `body` although `localised` was requested; None otherwise.
        patches: patches run.
        patches_skipped: further patches that `exhaustive`, which covers the full scan, would have run.
        volume_skipped_share: share of the scan's volume, in voxels of the prepared spacing, outside all patches that
            shaped the mask.
    """

    mode: str
    fallback: str | None
    patches: int
    patches_skipped: int
    volume_skipped_share: float


class SegmentationRequest:
    """Take patches, put their logits, read the mask.

    Patches are handed out, and must be answered, in a fixed order: sums of floats depend on it, and a served mask
    equals the offline one voxel for voxel. In mode `localised` more patches may remain once all of a stage have been
    answered.

    Args:
        prepared: the scan on the prepared grid.
        preprocessing, inference, patch_ijk: settings of the bundle.
        mask_only: keep only the probabilities that the mask depends on; `probability` is not available then.
        out_of_domain: reasons why the scan differs from the model's intended input, one sentence each.
        suspicion: where mode `localised` runs patches; by default the network's own coarse pass decides.

    Attributes:
        prepared, out_of_domain: as given.
    """

    def __init__(
        self,
        prepared: Prepared,
        preprocessing: PreprocessingConfig,
        inference: InferenceConfig,
        patch_ijk: tuple[int, int, int],
        *,
        mask_only: bool = False,
        out_of_domain: tuple[str, ...] = (),
        suspicion: Suspicion | None = None,
    ) -> None:
        self.prepared, self.out_of_domain = prepared, out_of_domain
        self._inference, self._mask_only = inference, mask_only
        self._patches = ScanPatches(prepared, preprocessing, inference, patch_ijk)
        self._selection = select_patches(self._patches, prepared.hu.spacing_mm, inference, suspicion)
        self._iterator = PatchIterator(self._patches)
        self._stage = self._selection.first_stage()
        self._accumulator = self._start(self._stage)

    @property
    def notes(self) -> tuple[str, ...]:
        """Remarks on the scan for readers of the mask, one sentence each."""
        return self.prepared.notes

    @property
    def patches(self) -> int:
        """Patches that the scan takes, as far as is known."""
        return self._iterator.total

    @property
    def remaining(self) -> int:
        """Patches that can be taken now."""
        return self._iterator.remaining

    @property
    def done(self) -> bool:
        """Whether every patch has been answered."""
        return self._iterator.done

    def take(self) -> Patch:
        """Return the next patch."""
        return self._iterator.take()

    def put(self, number: int, logits: NDArray[np.float32]) -> None:
        """Add the tumour logits (i, j, k) of a patch, in the order in which patches were taken."""
        in_grid = self._iterator.answer(number)
        if not self._stage.locates:
            self._accumulator.add(in_grid, logits)
        self._selection.observe(in_grid, logits)
        while self.done and (stage := self._selection.next_stage(self._accumulator)) is not None:
            self._stage, self._accumulator = stage, self._start(stage)

    def probability(self) -> NDArray[np.float32]:
        """Tumour probability on the prepared grid; 0 where no patch was run."""
        assert self.done, "every patch is answered first"
        assert not self._mask_only, "only the mask was kept"
        return self._accumulator.read(self._patches.inner)

    def mask(self) -> Volume:
        """The uint8 mask on the scan's own grid."""
        assert self.done, "every patch is answered first"
        inner, prepared = self._patches.inner, self.prepared
        marked = self._accumulator.marked_box()
        near = marked.overlap(inner) if marked else None
        if near is None:
            return Volume(np.zeros(prepared.source_shape, np.uint8, order="F"), prepared.source_affine)
        within = near.moved(inner.start_ijk)
        mask = restore_mask(self._accumulator.read(near), prepared, self._inference.threshold, within)
        if self._inference.keep_largest:
            mask = mask.with_array(largest_component(mask.array > 0).view(np.uint8))
        return mask

    def uncertainty(self, mask: Volume) -> MaskUncertainty:
        """Estimate the uncertainty of `mask()`, which is given, from the probabilities that made it.

        No patch runs again, and a block is read at a time, so that memory and time are small beside those of the mask.
        """
        assert self.done, "every patch is answered first"
        start_ijk, only_largest = self._patches.inner.start_ijk, self._inference.keep_largest
        blocks = ((box.moved(start_ijk), p) for box, p in self._accumulator.kept())
        return uncertainty_of_mask(
            blocks,
            self._accumulator.highest,
            self._inference.threshold,
            mask,
            # A component that was dropped is not part of the mask.
            among=self.prepared.hu.affine if only_largest else None,
        )

    def coverage(self) -> Coverage:
        """How much of the scan was run."""
        patches, numbers = self._patches, self._stage.numbers
        seen = np.zeros(patches.shape, bool)
        for number in numbers:
            seen[patches.grid.slices(number)] = True
        extent, inference = self.prepared.extent, self._inference
        full = extent.shape if extent else self.prepared.hu.shape
        exhaustive = PatchGrid.covering(full, patches.grid.patch_ijk, inference.overlap, inference.sliding_window)
        fallback = self._selection.fallback
        return Coverage(
            mode="body" if fallback else inference.mode,
            fallback=fallback,
            patches=self._iterator.total - self._iterator.remaining,
            patches_skipped=len(exhaustive) - len(numbers),
            volume_skipped_share=1 - np.count_nonzero(seen[patches.inner.slices]) / math.prod(full),
        )

    def _start(self, stage: Stage) -> LogitAccumulator:
        """Queue the patches of a stage and return the accumulator of their logits."""
        self._iterator.add([number for number in stage.numbers if number not in stage.known])
        return LogitAccumulator(
            self._patches.grid,
            [] if stage.locates else stage.numbers,
            self._patches.weights,
            self._inference.threshold,
            mask_only=self._mask_only,
            known=stage.known,
            inner=self._patches.inner,
        )


def run_patches(request: SegmentationRequest, forward: Forward, batch_size: int) -> None:
    """Run every patch of a request.

    Args:
        request: the scan.
        forward: logits (b, i, j, k) of up to `batch_size` patches (c, i, j, k).
        batch_size: patches a call.
    """
    while request.remaining:
        patches = [request.take() for _ in range(min(batch_size, request.remaining))]
        for patch, logits in zip(patches, forward([p.channels for p in patches]), strict=True):
            request.put(patch.number, logits)
