"""Training patches: sample number in, patch out, the same on every worker, rank and resume."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import product

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
        device: where patches are changed, and where they end up.

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
        self._device = device
        # A batch lies in one turn or in two.
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
        turn, place = divmod(number, len(self._cases))
        case = self._cases[int(self._order(turn)[place])]
        start = self._start(case, np.random.default_rng((seed, 2, number)))
        draw = draw_changes(self._augmentation, spacing_mm, np.random.default_rng((seed, 3, number)))
        if draw.moves:
            warp = Warp.build(draw, patch_ijk, spacing_mm, self._augmentation.elastic_grid_mm)
            scans, mask = self._read_warped(case, start + (np.asarray(patch_ijk) - 1) / 2, warp)
        else:
            scans, mask = self._read(case, start, patch_ijk)
        image = change_intensities(_windows(scans, self._preprocessing.windows_hu), draw)
        return mirror(image, mask, draw)

    def batch(self, numbers: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Several patches: channels (b, c, i, j, k) and masks (b, 1, i, j, k), both float32."""
        images, masks = zip(*(self.sample(number) for number in numbers), strict=True)
        return torch.stack(images), torch.stack(masks)[:, None].float()

    def _order_of_turn(self, turn: int) -> NDArray[np.int64]:
        return np.random.default_rng((self._training.seed, 1, turn)).permutation(len(self._cases))

    def _start(self, case: CachedCase, rng: np.random.Generator) -> NDArray[np.int64]:
        """First voxel of a patch: about a tumour voxel, jittered by up to a third of its size, or anywhere."""
        patch, shape = np.asarray(self._training.patch_ijk), np.asarray(case.shape)
        # As far as the case allows, the patch stays inside it; a smaller case sits in its middle.
        low, high = np.minimum(0, shape // 2 - patch // 2), np.maximum(shape - patch, shape // 2 - patch // 2)
        foreground = case.foreground_ijk() if rng.random() < self._training.foreground_share else ()
        if len(foreground):
            centre = foreground[rng.integers(len(foreground))] + rng.integers(-(patch // 3), patch // 3 + 1)
            return np.asarray(np.clip(centre - patch // 2, low, high), dtype=np.int64)
        return np.asarray(rng.integers(low, high + 1), dtype=np.int64)

    def _read_warped(
        self, case: CachedCase, centre_ijk: NDArray[np.float64], warp: Warp
    ) -> tuple[list[Tensor], Tensor]:
        """HU and mask under a warp: what it shows is read, so corners are empty only where the scan ends."""
        start, size = warp.region(centre_ijk, case.shape)
        scans, mask = self._read(case, start, size)
        moved = [warp.sample(hu, centre_ijk - start) for hu in scans]
        if not mask.any():
            return moved, torch.zeros(moved[0].shape, dtype=torch.uint8, device=moved[0].device)
        return moved, (warp.sample(mask.float(), centre_ijk - start) >= 0.5).to(torch.uint8)

    def _read(
        self, case: CachedCase, start: NDArray[np.int64], size: Sequence[int] | NDArray[np.int64]
    ) -> tuple[list[Tensor], Tensor]:
        """HU float32 (and those of the mirrored scan) and mask uint8 of a box; beyond the case there is air."""
        stop = start + np.asarray(size)
        low, high = np.maximum(start, 0), np.minimum(stop, case.shape)
        box = Box(tuple(low.tolist()), tuple(high.tolist()))
        hu, mask = case.read(box)
        mirrored = case.read_mirrored(box)
        scans = [hu] if mirrored is None else [hu, mirrored]
        if (low != start).any() or (high != stop).any():
            pad = [(int(a), int(b)) for a, b in zip(low - start, stop - high, strict=True)]
            scans, mask = [np.pad(each, pad, constant_values=AIR_HU) for each in scans], np.pad(mask, pad)
        tensors = [torch.from_numpy(each).to(self._device).float() for each in scans]
        return tensors, torch.from_numpy(mask).to(self._device)


def _windows(scans: Sequence[Tensor], windows_hu: tuple[tuple[float, float], ...]) -> Tensor:
    """What `to_channels` does, for tensors on any device."""
    shape = (len(scans) * len(windows_hu), *scans[0].shape)
    channels = torch.empty(shape, dtype=torch.float32, device=scans[0].device)
    for channel, (hu, (low, high)) in zip(channels, product(scans, windows_hu), strict=True):
        torch.sub(hu, low, out=channel).mul_(1.0 / (high - low)).clamp_(0.0, 1.0)
    return channels
