"""One scan on its way to a mask: an iterator of patches and the accumulator of their answers. Torch-free."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cc3d
import numpy as np
from numpy.typing import NDArray

from gtvray.config import InferenceConfig, PreprocessingConfig
from gtvray.geometry import Box, Volume
from gtvray.inference.aggregate import BlockMean
from gtvray.inference.localise import BEYOND, EMPTY, CloseLook, CoarsePass, Suspicion
from gtvray.inference.schedule import PatchGrid, gaussian_weights
from gtvray.preprocessing import AIR_HU, Prepared, restore_mask, to_channels


@dataclass(frozen=True)
class Patch:
    """A patch to be answered: how many came before it, and its channels (c, i, j, k)."""

    number: int
    channels: NDArray[np.float32]


@dataclass(frozen=True)
class Coverage:
    """What was looked at and what was not.

    Attributes:
        mode: what was done in the end.
        fallback: why it is `body` where `localised` was asked for.
        patches: run.
        patches_skipped: how many more `exhaustive` takes, which covers the whole scan.
        volume_skipped_share: of the scan's volume, in voxels of the prepared spacing, the share in no patch that shaped
            the mask.
    """

    mode: str
    fallback: str | None
    patches: int
    patches_skipped: int
    volume_skipped_share: float


class CaseJob:
    """Takes a prepared scan, hands out patches in a fixed order, takes answers in that order, gives the mask.

    The order is fixed because sums of floats depend on it, and a served mask equals the offline one voxel for voxel.
    In mode `localised` more patches may be there to be taken once all that were asked for have been answered.

    Args:
        prepared: the scan on the prepared grid.
        preprocessing, inference, patch_ijk: the bundle's settings.
        mask_only: hold no more of the answers than the mask needs; `probability` is not to be asked for.
        out_of_domain: why the scan is unlike what the model was made for, a sentence each.
        suspicion: where mode `localised` is to look closely; without it the network's own coarse pass tells.
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
        self._prepared = prepared
        self.out_of_domain = out_of_domain
        self._preprocessing, self._inference, self._mask_only = preprocessing, inference, mask_only
        shape = prepared.hu.shape
        # A close look is `exhaustive` where it matters: its patches lie where those of the whole scan do.
        extent = (prepared.extent if inference.mode == "localised" else None) or Box.whole(shape)
        rule = inference.sliding_window
        self._grid, frame = PatchGrid.reaching(shape, extent, patch_ijk, inference.overlap, rule)
        pad = [(-low, high - n) for n, low, high in zip(shape, frame.start_ijk, frame.stop_ijk, strict=True)]
        self._hu = _in_air(prepared.hu.array, pad)
        self._mirrored = None if prepared.mirrored is None else _in_air(prepared.mirrored, pad)
        self._inner = Box.whole(shape).moved(frame.start_ijk)
        self._weights = gaussian_weights(patch_ijk, rule)
        self._handed = self._answered = 0
        self._queue: deque[int] = deque()
        self._asked: deque[int] = deque()
        self._coarse: CoarsePass | None = None
        self._close: CloseLook | None = None
        self._known: dict[int, NDArray[np.float32]] = {}
        self._searching = self._widened = False
        self._fallback: str | None = None
        self._begin(suspicion)

    @property
    def prepared(self) -> Prepared:
        """The scan on the prepared grid."""
        return self._prepared

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of the mask should know about the scan, a sentence each."""
        return self._prepared.notes

    @property
    def patches(self) -> int:
        """How many patches the scan takes, as far as is known."""
        return self._handed + len(self._queue)

    @property
    def remaining(self) -> int:
        """How many are there to be taken."""
        return len(self._queue)

    @property
    def done(self) -> bool:
        """Whether every patch has been answered."""
        return not self._queue and not self._asked

    def take(self) -> Patch:
        """The next patch."""
        number = self._queue.popleft()
        self._asked.append(number)
        self._handed += 1
        place = self._grid.slices(number)
        mirrored = None if self._mirrored is None else self._mirrored[place]
        return Patch(self._handed - 1, to_channels(self._hu[place], self._preprocessing.windows_hu, mirrored))

    def put(self, number: int, logits: NDArray[np.float32]) -> None:
        """The answer to a patch: logits of the tumour (i, j, k)."""
        assert number == self._answered, "answers come in the order of the patches"
        self._answered += 1
        asked = self._asked.popleft()
        if self._searching:
            assert self._coarse is not None
            self._coarse.add(asked, logits)
        else:
            self._add(asked, logits)
        if self.done:
            self._go_on()

    def probability(self) -> NDArray[np.float32]:
        """Tumour probability on the prepared grid; 0 where no patch was run."""
        assert self.done, "every patch is answered first"
        assert not self._mask_only, "nothing but the mask was kept"
        return self._mean.read(self._inner)

    def finish(self) -> Volume:
        """The uint8 mask on the scan's own grid."""
        assert self.done, "every patch is answered first"
        marked = self._mean.marked_box()
        near = marked.overlap(self._inner) if marked else None
        if near is None:
            return Volume(np.zeros(self._prepared.source_shape, np.uint8, order="F"), self._prepared.source_affine)
        within = near.moved(self._inner.start_ijk)
        mask = restore_mask(self._mean.read(near), self._prepared, self._inference.threshold, within)
        if self._inference.keep_largest:
            mask = mask.with_array(largest_component(mask.array > 0).view(np.uint8))
        return mask

    def coverage(self) -> Coverage:
        """What was looked at."""
        seen = np.zeros(self._hu.shape, bool)
        for number in self._run:
            seen[self._grid.slices(number)] = True
        extent = self._prepared.extent
        whole = extent.shape if extent else self._prepared.hu.shape
        every = PatchGrid.covering(whole, self._grid.patch_ijk, self._inference.overlap, self._inference.sliding_window)
        return Coverage(
            mode="body" if self._fallback else self._inference.mode,
            fallback=self._fallback,
            patches=self._handed,
            patches_skipped=len(every) - len(self._run),
            volume_skipped_share=1 - np.count_nonzero(seen[self._inner.slices]) / math.prod(whole),
        )

    def _begin(self, suspicion: Suspicion | None) -> None:
        if self._inference.mode == "exhaustive":
            self._look(list(range(len(self._grid))))
            return
        body = self._grid.touching(self._hu > self._preprocessing.body_threshold_hu)
        if self._inference.mode == "body":
            self._look(body)
            return
        self._close = CloseLook(self._grid, body, self._weights, self._prepared.hu.spacing_mm)
        if suspicion is not None:
            suspected = np.zeros(self._hu.shape, bool)
            suspected[self._inner.slices] = suspicion.suspected
            self._look_at(Suspicion(suspected, suspicion.highest))
            return
        self._coarse = CoarsePass(self._grid, body, self._hu.shape, self._inference.threshold)
        self._searching = True
        self._queue.extend(self._coarse.numbers)

    def _look(self, numbers: list[int]) -> None:
        """Have these patches answered and put together, in this order; some may have their answers already."""
        threshold, mask_only = self._inference.threshold, self._mask_only
        self._run, self._order = numbers, deque(numbers)
        self._mean = BlockMean(self._grid, numbers, self._weights, threshold, mask_only=mask_only)
        self._queue.extend(number for number in numbers if number not in self._known)
        self._add_known()

    def _look_at(self, suspicion: Suspicion) -> None:
        assert self._close is not None
        numbers = self._close.around(suspicion.suspected)
        self._fallback = suspicion.doubt(self._inference.threshold) or (None if numbers else EMPTY)
        self._look(self._close.body if self._fallback else numbers)

    def _add(self, number: int, logits: NDArray[np.float32]) -> None:
        self._mean.add(number, logits)
        assert self._order.popleft() == number, "patches are put together in the order of the grid"
        if self._close is not None and not self._fallback:
            # Put together once more if the look is widened.
            self._known[number] = logits.copy()
        self._add_known()

    def _add_known(self) -> None:
        while self._order and self._order[0] in self._known:
            number = self._order.popleft()
            self._mean.add(number, self._known[number])

    def _go_on(self) -> None:
        """What was asked for is answered: look closely, look further, look at the whole body, or be done."""
        if self._close is None or self._fallback:
            return
        if self._searching:
            assert self._coarse is not None
            self._searching = False
            self._known = self._coarse.answers
            self._look_at(self._coarse.suspicion())
        while self.done and not self._fallback:
            marked = self._marked()
            if marked is None or not self._close.is_beyond(marked, self._run):
                return
            self._fallback = BEYOND if self._widened else None
            self._widened = True
            further = sorted({*self._run, *self._close.around(marked)})
            self._look(self._close.body if self._fallback else further)

    def _marked(self) -> NDArray[np.bool_] | None:
        """The voxels that are marked, on the padded grid, or None if none can be."""
        box = self._mean.marked_box()
        near = box.overlap(Box.whole(self._hu.shape)) if box else None
        if near is None:
            return None
        marked = np.zeros(self._hu.shape, bool)
        marked[near.slices] = self._mean.read(near) > self._inference.threshold
        return marked


def _in_air(hu: NDArray[np.int16], pad: list[tuple[int, int]]) -> NDArray[np.int16]:
    return np.pad(hu, pad, constant_values=AIR_HU) if np.any(pad) else hu


def run_to_end(
    job: CaseJob, forward: Callable[[Sequence[NDArray[np.float32]]], NDArray[np.float32]], batch_size: int
) -> None:
    """Answer every patch of a job, so many at a time."""
    while job.remaining:
        patches = [job.take() for _ in range(min(batch_size, job.remaining))]
        for patch, logits in zip(patches, forward([p.channels for p in patches]), strict=True):
            job.put(patch.number, logits)


def largest_component(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The largest connected component (26 neighbours) of a mask, which may be empty."""
    box = Box.around(mask)
    if box is None:
        return mask
    result = np.zeros_like(mask)
    # A copy: cc3d refuses what is read-only.
    result[box.slices] = cc3d.largest_k(mask[box.slices].copy(), k=1, connectivity=26) > 0
    return result
