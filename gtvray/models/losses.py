"""Losses, each the mean over samples of a per-sample value: workers with half the batch give the same gradient."""

from __future__ import annotations

from collections.abc import Callable

import torch
from monai.losses.dice import DiceCELoss, DiceFocalLoss, DiceLoss

from gtvray.config import LossConfig

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
_TOPK_SHARE = 0.1
# Deeper heads count half of the one above, as in nnU-Net.
_DEPTH_DECAY = 0.5


def build_loss(config: LossConfig) -> Loss:
    """A function of logits (b, 1, i, j, k), or (b, heads, 1, i, j, k), and masks (b, 1, i, j, k)."""
    single = _BUILDERS[config.kind](config)

    def loss(logits: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
        if logits.ndim == masks.ndim:
            return single(logits.float(), masks)
        heads = logits.float().unbind(dim=1)
        weights = [_DEPTH_DECAY**depth for depth in range(len(heads))]
        total = sum((w * single(head, masks) for w, head in zip(weights, heads, strict=True)), logits.new_zeros(()))
        return total / sum(weights)

    return loss


def _dice_ce(config: LossConfig) -> Loss:
    loss: Loss = DiceCELoss(sigmoid=True, batch=False, lambda_dice=config.dice_weight, smooth_nr=1.0, smooth_dr=1.0)
    return loss


def _dice_focal(config: LossConfig) -> Loss:
    loss: Loss = DiceFocalLoss(sigmoid=True, batch=False, lambda_dice=config.dice_weight, smooth_nr=1.0, smooth_dr=1.0)
    return loss


def _dice_topk(config: LossConfig) -> Loss:
    dice = DiceLoss(sigmoid=True, batch=False, smooth_nr=1.0, smooth_dr=1.0)

    def loss(logits: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
        voxels = torch.nn.functional.binary_cross_entropy_with_logits(logits, masks, reduction="none").flatten(1)
        hardest = voxels.topk(max(1, int(voxels.shape[1] * _TOPK_SHARE)), dim=1).values
        total: torch.Tensor = config.dice_weight * dice(logits, masks) + hardest.mean()
        return total

    return loss


_BUILDERS: dict[str, Callable[[LossConfig], Loss]] = {
    "dice_ce": _dice_ce,
    "dice_focal": _dice_focal,
    "dice_topk": _dice_topk,
}
