"""Training patches: sample number in, patch out, the same on every worker, rank and resume."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from gtvray.config import AugmentationConfig, PreprocessingConfig, TrainingConfig
from gtvray.data.augmentation import augment
from gtvray.data.cache import CachedCase
from gtvray.errors import DataError
from gtvray.geometry import Box
from gtvray.preprocessing import AIR_HU, to_channels


class PatchSampler:
    """Draws augmented patches from prepared cases.

    Args:
        cases: prepared training cases.
        training: patch size, foreground share and seed.
        preprocessing: the intensity windows.
        augmentation: the random changes.

    Raises:
        DataError: no case.
    """

    def __init__(
        self,
        cases: Sequence[CachedCase],
        training: TrainingConfig,
        preprocessing: PreprocessingConfig,
        augmentation: AugmentationConfig,
    ) -> None:
        if not cases:
            raise DataError("no training case")
        self._cases = list(cases)
        self._training = training
        self._windows_hu = preprocessing.windows_hu
        self._augmentation = augmentation
        self._foreground = lru_cache(maxsize=1024)(lambda index: self._cases[index].foreground_ijk())

    def sample(self, number: int) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        """Patch `number` of the run.

        Each pass over the cases visits every case once, in an order of its own.

        Args:
            number: global sample number, from 0.

        Returns:
            channels (c, i, j, k) in 0..1 and mask (i, j, k) of 0 and 1.
        """
        turn, place = divmod(number, len(self._cases))
        order = np.random.default_rng((self._training.seed, 1, turn)).permutation(len(self._cases))
        rng = np.random.default_rng((self._training.seed, 2, number))
        index = int(order[place])
        case = self._cases[index]
        centre = self._centre(index, case, rng)
        hu, mask = _read_padded(case, centre, self._training.patch_ijk)
        return augment(to_channels(hu, self._windows_hu), mask, self._augmentation, rng)

    def batch(self, numbers: Sequence[int]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Several patches: channels (b, c, i, j, k) and masks (b, 1, i, j, k), both float32."""
        images, masks = zip(*(self.sample(number) for number in numbers), strict=True)
        return np.stack(images), np.stack(masks)[:, None].astype(np.float32)

    def _centre(self, index: int, case: CachedCase, rng: np.random.Generator) -> NDArray[np.int64]:
        """A tumour voxel jittered by up to a third of a patch, or anywhere in the body's box."""
        patch = np.asarray(self._training.patch_ijk)
        shape = np.asarray(case.shape)
        foreground = self._foreground(index)
        if rng.random() < self._training.foreground_share and len(foreground):
            voxel = foreground[rng.integers(len(foreground))]
            centre = voxel + rng.integers(-(patch // 3), patch // 3 + 1)
        else:
            centre = rng.integers(0, shape)
        # As far as the case allows, the patch stays inside it.
        low, high = np.minimum(patch // 2, shape // 2), np.maximum(shape - (patch - patch // 2), shape // 2)
        return np.asarray(np.clip(centre, low, high), dtype=np.int64)


def _read_padded(
    case: CachedCase, centre: NDArray[np.int64], patch_ijk: tuple[int, int, int]
) -> tuple[NDArray[np.int16], NDArray[np.uint8]]:
    size = np.asarray(patch_ijk)
    start = centre - size // 2
    low = np.maximum(start, 0)
    high = np.minimum(start + size, case.shape)
    hu, mask = case.read(Box(tuple(low.tolist()), tuple(high.tolist())))
    if hu.shape == tuple(patch_ijk):
        return hu, mask
    pad = [(int(a), int(b)) for a, b in zip(low - start, start + size - high, strict=True)]
    return np.pad(hu, pad, constant_values=AIR_HU), np.pad(mask, pad)
