"""Training patches by sample number: the same number gives the same patch on every worker and after a resume."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import product
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gtvray.config import AugmentationConfig, PreprocessingConfig, TrainingConfig
from gtvray.data.cache.prepared import CachedCase
from gtvray.data.patches.augmentation import change_intensities, mirror
from gtvray.data.patches.draws import draw_changes
from gtvray.data.patches.warp import Warp
from gtvray.errors import DataError
from gtvray.geometry import Box
from gtvray.preprocessing import AIR_HU


class PatchSampler:
    """Draws augmented patches from prepared cases; any number of threads may share one.

    Args:
        cases: prepared training cases.
        training: patch size, foreground share and seed.
        preprocessing: voxel spacing and intensity windows.
        augmentation: the random changes.
        device: patches are augmented and returned on it. On a GPU, HU are copied as int16 from pinned memory, in the
            calling thread's current stream; every choice is drawn on the CPU, so patches are those of a CPU up to
            rounding.

    Raises:
        DataError: no case.
    """

    def __init__(
        self,
        cases: Sequence[CachedCase],
        training: TrainingConfig,
        preprocessing: PreprocessingConfig,
        augmentation: AugmentationConfig,
        device: torch.device | str = "cpu",
    ) -> None:
        if not cases:
            raise DataError("no training case")
        self._cases = list(cases)
        self._training = training
        self._preprocessing = preprocessing
        self._augmentation = augmentation
        self._device = torch.device(device)
        # A batch spans one pass over the cases or two.
        self._order = lru_cache(maxsize=2)(self._order_of_turn)

    def sample(self, number: int) -> tuple[Tensor, Tensor]:
        """Patch `number` of the run.

        Each pass over the cases visits every case once, in an order of its own. Where to look and what to change are
        drawn from generators of their own, so neither depends on the settings of the other.

        Args:
            number: global sample number, from 0.

        Returns:
            channels (c, i, j, k) float32 in 0..1 and mask (i, j, k) uint8 of 0 and 1.
        """
        seed, patch_ijk = self._training.seed, self._training.patch_ijk
        spacing_mm = self._preprocessing.spacing_mm
        turn, position = divmod(number, len(self._cases))
        case = self._cases[int(self._order(turn)[position])]
        start = self._start(case, np.random.default_rng((seed, 2, number)))
        draw = draw_changes(self._augmentation, spacing_mm, np.random.default_rng((seed, 3, number)))
        if draw.moves:
            warp = Warp.build(draw, patch_ijk, spacing_mm, self._augmentation.elastic_grid_mm)
            scans, mask = self._read_warped(case, start + (np.asarray(patch_ijk) - 1) / 2, warp)
        else:
            arrays, labels = self._read(case, start, patch_ijk)
            scans, mask = [self._hu(each) for each in arrays], self._placed(labels)
        image = change_intensities(_windows(scans, self._preprocessing.windows_hu), draw)
        return mirror(image, mask, draw)

    def batch(self, numbers: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Several patches: channels (b, c, i, j, k) and masks (b, 1, i, j, k), both float32."""
        images, masks = zip(*(self.sample(number) for number in numbers), strict=True)
        return torch.stack(images), torch.stack(masks)[:, None].float()

    def _order_of_turn(self, turn: int) -> NDArray[np.int64]:
        return np.random.default_rng((self._training.seed, 1, turn)).permutation(len(self._cases))

    def _start(self, case: CachedCase, rng: np.random.Generator) -> NDArray[np.int64]:
        """First voxel of a patch: centred on a tumour voxel within a third of the patch's size, or anywhere."""
        patch, shape = np.asarray(self._training.patch_ijk), np.asarray(case.shape)
        # The patch stays inside the case where it can; a smaller case lies in its middle.
        low, high = np.minimum(0, shape // 2 - patch // 2), np.maximum(shape - patch, shape // 2 - patch // 2)
        foreground = case.foreground_ijk() if rng.random() < self._training.foreground_share else ()
        if len(foreground):
            centre = foreground[rng.integers(len(foreground))] + rng.integers(-(patch // 3), patch // 3 + 1)
            return np.asarray(np.clip(centre - patch // 2, low, high), dtype=np.int64)
        return np.asarray(rng.integers(low, high + 1), dtype=np.int64)

    def _read_warped(
        self, case: CachedCase, centre_ijk: NDArray[np.float64], warp: Warp
    ) -> tuple[list[Tensor], Tensor]:
        """HU and mask under a warp; the box is large enough for corners to be empty only where the scan ends."""
        start, size = warp.region(centre_ijk, case.shape)
        scans, mask = self._read(case, start, size)
        warped = [warp.sample(self._hu(each), centre_ijk - start) for each in scans]
        # Looked at before it is copied: to ask a GPU would wait for it.
        if not mask.any():
            return warped, torch.zeros(warped[0].shape, dtype=torch.uint8, device=self._device)
        return warped, (warp.sample(self._placed(mask).float(), centre_ijk - start) >= 0.5).to(torch.uint8)

    def _read(
        self, case: CachedCase, start: NDArray[np.int64], size: Sequence[int] | NDArray[np.int64]
    ) -> tuple[list[NDArray[np.int16]], NDArray[np.uint8]]:
        """HU of the scan (and of the mirrored scan) and mask in a box; outside the case there is air."""
        stop = start + np.asarray(size)
        low, high = np.maximum(start, 0), np.minimum(stop, case.shape)
        box = Box(tuple(low.tolist()), tuple(high.tolist()))
        hu, mask = case.read(box)
        mirrored = case.read_mirrored(box)
        scans = [hu] if mirrored is None else [hu, mirrored]
        if (low != start).any() or (high != stop).any():
            pad = [(int(a), int(b)) for a, b in zip(low - start, stop - high, strict=True)]
            scans, mask = [np.pad(each, pad, constant_values=AIR_HU) for each in scans], np.pad(mask, pad)
        return scans, mask

    def _hu(self, array: NDArray[np.int16]) -> Tensor:
        """HU on the device, as float32: converted there, so half the bytes are copied."""
        return self._placed(array).float()

    def _placed(self, array: NDArray[Any]) -> Tensor:
        """An array as a tensor on the device."""
        tensor = torch.from_numpy(array)
        if self._device.type != "cuda":
            return tensor.to(self._device)
        return tensor.pin_memory().to(self._device, non_blocking=True)


def _windows(scans: Sequence[Tensor], windows_hu: tuple[tuple[float, float], ...]) -> Tensor:
    """`preprocessing.to_channels` for tensors on any device."""
    shape = (len(scans) * len(windows_hu), *scans[0].shape)
    channels = torch.empty(shape, dtype=torch.float32, device=scans[0].device)
    for channel, (hu, (low, high)) in zip(channels, product(scans, windows_hu), strict=True):
        torch.sub(hu, low, out=channel).mul_(1.0 / (high - low)).clamp_(0.0, 1.0)
    return channels
