"""The registry of losses. Each has a reduction, so that workers that share a batch train like a single worker.

A `per_sample` loss is the mean of a value per sample: workers average it. A `global` loss is one value of the full
batch: workers exchange the sums it consists of, and each computes the same loss.

To add a loss, add its name to `loss.kind` in the schema, a term to `terms.py` if needed, and an entry to `LOSSES`;
`tests/models/test_loss_conformance.py` then covers it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import torch

from gtvray.config import LossConfig
from gtvray.models import terms
from gtvray.models.terms import Term

Reduction = Literal["per_sample", "global"]
# A coarser head counts half of the next finer one, as in nnU-Net.
_DEPTH_DECAY = 0.5


class Loss(Protocol):
    """The objective of a training."""

    def __call__(self, logits: torch.Tensor, masks: torch.Tensor, progress: float = 1.0) -> torch.Tensor:
        """Compute the loss, a scalar in double precision.

        Args:
            logits: (b, 1, i, j, k), or (b, heads, 1, i, j, k) with the finest first.
            masks: (b, 1, i, j, k), 1 in the tumour.
            progress: completed share of the training, 0 to 1.
        """


@dataclass(frozen=True)
class Recipe:
    """The terms of a loss, and its reduction."""

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
    """The reduction of a loss: a mean over samples, or a value of the full batch of all workers."""
    return LOSSES[config.kind].reduction


def build_loss(config: LossConfig, spacing_mm: tuple[float, float, float] = (1.0, 1.0, 1.0)) -> Loss:
    """Build a loss.

    Args:
        config: its kind and weights.
        spacing_mm: voxel spacing of a patch, for distances.
    """
    recipe = LOSSES[config.kind]

    def loss(logits: torch.Tensor, masks: torch.Tensor, progress: float = 1.0) -> torch.Tensor:
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        masks = masks.to(logits.dtype)
        weight = config.boundary_weight * _ramp(progress, config.boundary_warmup_share)
        distances_mm = terms.signed_distances_mm(masks, spacing_mm) if recipe.boundary and weight else None
        heads = logits.unbind(dim=1) if logits.ndim > masks.ndim else (logits,)
        total = torch.zeros((), dtype=torch.float64, device=logits.device)
        for depth, head in enumerate(heads):
            # In double precision the mean over samples does not depend on how samples are split over workers.
            values = config.dice_weight * recipe.dice(head, masks).double() + recipe.voxels(head, masks).double()
            if distances_mm is not None:
                values = values + weight * terms.boundary(head, masks, distances_mm).double()
            total = total + _DEPTH_DECAY**depth * values.mean()
        return total / sum(_DEPTH_DECAY**depth for depth in range(len(heads)))

    return loss


def _ramp(progress: float, share: float) -> float:
    """A factor that grows linearly from 0 to 1 over a share of the training."""
    return min(1.0, progress / share) if share else 1.0
