"""Losses. Each says what it is reduced over, so that workers that share a batch do what one with all of it does.

A loss `per_sample` is the mean over samples of a value of each: workers average. One that is `global` is a value of the
whole batch: workers exchange the sums it is made of, and each has the same loss.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import torch

from gtvray.config import LossConfig
from gtvray.models import terms
from gtvray.models.terms import Term

Reduction = Literal["per_sample", "global"]
# Deeper heads count half of the one above, as in nnU-Net.
_DEPTH_DECAY = 0.5


class Loss(Protocol):
    """What a training minimises."""

    def __call__(self, logits: torch.Tensor, masks: torch.Tensor, progress: float = 1.0) -> torch.Tensor:
        """A scalar, in double precision.

        Args:
            logits: (b, 1, i, j, k), or (b, heads, 1, i, j, k) with the finest first.
            masks: (b, 1, i, j, k), 1 in the tumour.
            progress: share of the training that is done, 0..1.
        """


@dataclass(frozen=True)
class Recipe:
    """What a kind of loss is made of, and what it is reduced over."""

    reduction: Reduction
    dice: Term
    voxels: Term
    boundary: bool = False


LOSSES: dict[str, Recipe] = {
    "dice_ce": Recipe("per_sample", terms.dice, terms.cross_entropy),
    "dice_focal": Recipe("per_sample", terms.dice, terms.focal),
    "dice_topk": Recipe("per_sample", terms.dice, terms.hardest_cross_entropy),
    "dice_boundary": Recipe("per_sample", terms.dice, terms.cross_entropy, boundary=True),
    "batch_dice_ce": Recipe("global", terms.batch_dice, terms.cross_entropy),
    "batch_dice_focal": Recipe("global", terms.batch_dice, terms.focal),
    "batch_dice_topk": Recipe("global", terms.batch_dice, terms.hardest_cross_entropy),
}


def loss_reduction(config: LossConfig) -> Reduction:
    """Whether the loss is a mean over samples or needs the whole batch of all workers at once."""
    return LOSSES[config.kind].reduction


def build_loss(config: LossConfig, spacing_mm: tuple[float, float, float] = (1.0, 1.0, 1.0)) -> Loss:
    """The loss of a training.

    Args:
        config: its kind and weights.
        spacing_mm: millimetres a voxel along each axis of a patch; distances are measured with it.
    """
    recipe = LOSSES[config.kind]

    def loss(logits: torch.Tensor, masks: torch.Tensor, progress: float = 1.0) -> torch.Tensor:
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        masks = masks.to(logits.dtype)
        weight = config.boundary_weight * _eased_in(progress, config.boundary_warmup_share)
        distances_mm = terms.signed_distances_mm(masks, spacing_mm) if recipe.boundary and weight else None
        heads = logits.unbind(dim=1) if logits.ndim > masks.ndim else (logits,)
        total = torch.zeros((), dtype=torch.float64, device=logits.device)
        for depth, head in enumerate(heads):
            # In double precision the mean over samples shows no trace of how many had a part in it.
            values = config.dice_weight * recipe.dice(head, masks).double() + recipe.voxels(head, masks).double()
            if distances_mm is not None:
                values = values + weight * terms.boundary(head, masks, distances_mm).double()
            total = total + _DEPTH_DECAY**depth * values.mean()
        return total / sum(_DEPTH_DECAY**depth for depth in range(len(heads)))

    return loss


def _eased_in(progress: float, share: float) -> float:
    return min(1.0, progress / share) if share else 1.0
