"""One scan on its way to a mask: an iterator of patches and the accumulator of their answers. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass

import cc3d
import numpy as np
from numpy.typing import NDArray

from gtvray.config import InferenceConfig, PreprocessingConfig
from gtvray.geometry import Volume
from gtvray.inference.schedule import gaussian_weights, patch_starts
from gtvray.preprocessing import AIR_HU, Prepared, restore_mask, to_channels


@dataclass(frozen=True)
class Patch:
    """A patch to be answered: its number in the schedule and its channels (c, i, j, k)."""

    number: int
    channels: NDArray[np.float32]


class CaseJob:
    """Takes a prepared scan, hands out patches in a fixed order, takes answers in that order, gives the mask.

    The order is fixed because sums of floats depend on it, and a served mask equals the offline one voxel for voxel.

    Args:
        prepared: the scan on the prepared grid.
        preprocessing, inference, patch_ijk: the bundle's settings.
    """

    def __init__(
        self,
        prepared: Prepared,
        preprocessing: PreprocessingConfig,
        inference: InferenceConfig,
        patch_ijk: tuple[int, int, int],
    ) -> None:
        self._prepared = prepared
        self._preprocessing, self._inference, self._patch_ijk = preprocessing, inference, patch_ijk
        shape = prepared.hu.shape
        self._padded = tuple(max(n, p) for n, p in zip(shape, patch_ijk, strict=True))
        # A grid smaller than the patch sits in the middle of it, as it does in training.
        self._before = tuple(p // 2 - n // 2 for n, p in zip(shape, self._padded, strict=True))
        pad = [(b, p - n - b) for n, p, b in zip(shape, self._padded, self._before, strict=True)]
        self._hu = np.pad(self._prepared.hu.array, pad, constant_values=AIR_HU)
        self._starts = self._schedule()
        self._handed = self._answered = 0
        self._weights = gaussian_weights(patch_ijk)
        self._sum = np.zeros(self._padded, dtype=np.float32)
        self._weight_sum = np.zeros(self._padded, dtype=np.float32)

    @property
    def patches(self) -> int:
        """How many patches the scan takes."""
        return len(self._starts)

    @property
    def remaining(self) -> int:
        """How many have not been handed out."""
        return len(self._starts) - self._handed

    @property
    def done(self) -> bool:
        """Whether every patch has been answered."""
        return self._answered == len(self._starts)

    def take(self) -> Patch:
        """The next patch."""
        number = self._handed
        self._handed += 1
        return Patch(number, to_channels(self._hu[self._slices(number)], self._preprocessing.windows_hu))

    def put(self, number: int, probability: NDArray[np.float32]) -> None:
        """The answer to a patch: tumour probability (i, j, k)."""
        assert number == self._answered, "answers come in the order of the patches"
        slices = self._slices(number)
        self._sum[slices] += probability * self._weights
        self._weight_sum[slices] += self._weights
        self._answered += 1

    def probability(self) -> NDArray[np.float32]:
        """Tumour probability on the prepared grid; 0 where no patch was run."""
        assert self.done, "every patch is answered first"
        mean = np.divide(self._sum, self._weight_sum, out=np.zeros_like(self._sum), where=self._weight_sum > 0)
        inner = tuple(slice(b, b + n) for b, n in zip(self._before, self._prepared.hu.shape, strict=True))
        return np.ascontiguousarray(mean[inner])

    def finish(self) -> Volume:
        """The uint8 mask on the scan's own grid."""
        mask = restore_mask(self.probability(), self._prepared, self._inference.threshold)
        if self._inference.keep_largest:
            mask = mask.with_array(largest_component(mask.array > 0).astype(np.uint8))
        return mask

    def _slices(self, number: int) -> tuple[slice, slice, slice]:
        i, j, k = (slice(s, s + p) for s, p in zip(self._starts[number], self._patch_ijk, strict=True))
        return i, j, k

    def _schedule(self) -> list[tuple[int, int, int]]:
        i, j, k = self._padded
        starts = patch_starts((i, j, k), self._patch_ijk, self._inference.overlap)
        if self._inference.mode == "exhaustive":
            return starts
        body = self._hu > self._preprocessing.body_threshold_hu
        return [
            s for s in starts if body[tuple(slice(a, a + p) for a, p in zip(s, self._patch_ijk, strict=True))].any()
        ]


def largest_component(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The largest connected component (26 neighbours) of a mask, which may be empty."""
    if not mask.any():
        return mask
    # A copy: cc3d refuses what is read-only.
    return np.asarray(cc3d.largest_k(mask.copy(), k=1, connectivity=26)) > 0
