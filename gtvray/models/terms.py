"""Terms of losses: logits and masks (b, 1, i, j, k) to a value of each sample (b,) that is zero at best."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import edt
import numpy as np
import torch
import torch.distributed as dist
from monai.losses.dice import DiceLoss
from monai.losses.focal_loss import FocalLoss

Term = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
_TOPK_SHARE = 0.1
# One voxel, so that a patch without tumour has a Dice.
_SMOOTH = 1.0
_monai_dice = DiceLoss(sigmoid=True, smooth_nr=_SMOOTH, smooth_dr=_SMOOTH, reduction="none")
_monai_focal = FocalLoss(reduction="none")


def dice(logits: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """One minus the soft Dice (Milletari et al., 3DV 2016)."""
    losses: torch.Tensor = _monai_dice(logits, masks)
    return losses.flatten()


def batch_dice(logits: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """One minus the soft Dice of all samples of all workers as one volume, as nnU-Net's batch Dice: a scalar.

    Samples are summed in double precision, so that the worker a sample came to does not show in the sum.
    """
    tumour = torch.sigmoid(logits)
    parts = (2 * tumour * masks, tumour + masks)
    sums = torch.stack([part.flatten(1).sum(dim=1) for part in parts])
    twice_shared, both = sum_over_workers(sums.double().sum(dim=1))
    loss: torch.Tensor = 1 - (twice_shared + _SMOOTH) / (both + _SMOOTH)
    return loss


def cross_entropy(logits: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Binary cross-entropy, the mean over voxels."""
    return _cross_entropies(logits, masks).mean(dim=1)


def hardest_cross_entropy(logits: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Binary cross-entropy of the tenth of a sample's voxels where it is highest."""
    voxels = _cross_entropies(logits, masks)
    return voxels.topk(max(1, int(voxels.shape[1] * _TOPK_SHARE)), dim=1).values.mean(dim=1)


def focal(logits: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Cross-entropy that all but forgets voxels already right (Lin et al., ICCV 2017); always in single precision."""
    voxels: torch.Tensor = _monai_focal(logits, masks)
    return voxels.flatten(1).mean(dim=1)


def boundary(logits: torch.Tensor, masks: torch.Tensor, distances_mm: torch.Tensor) -> torch.Tensor:
    """Mean distance in mm from the contour of what is marked wrongly (Kervadec et al., MIDL 2019).

    Its gradient is that of the paper's loss; the paper's lacks what the mask alone decides, and so goes below zero.

    Args:
        logits: (b, 1, i, j, k).
        masks: (b, 1, i, j, k).
        distances_mm: what `signed_distances_mm` gives for the masks.
    """
    return ((torch.sigmoid(logits) - masks) * distances_mm).flatten(1).mean(dim=1)


def signed_distances_mm(masks: torch.Tensor, spacing_mm: tuple[float, float, float]) -> torch.Tensor:
    """Distance to the nearest voxel on the other side of the contour, negative inside it.

    Only the patch is seen: a contour beyond its border is not. A patch without a contour is all zero.

    Args:
        masks: (b, 1, i, j, k), tumour above one half.
        spacing_mm: millimetres a voxel along each axis.

    Returns:
        (b, 1, i, j, k), as the masks are typed and placed.
    """
    measured = partial(edt.edt, anisotropy=spacing_mm, parallel=1)
    fields: list[np.ndarray[Any, Any]] = []
    for inside in (masks[:, 0] > 0.5).cpu().numpy():
        some = inside.any() and not inside.all()
        fields.append(measured(~inside) - measured(inside) if some else np.zeros(inside.shape, np.float32))
    return torch.from_numpy(np.stack(fields)[:, None]).to(masks)


def sum_over_workers(values: torch.Tensor) -> torch.Tensor:
    """The sum over all workers, on each, with its gradient; the values themselves when there is one worker."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return values
    total: torch.Tensor = _SumOverWorkers.apply(values)  # type: ignore[no-untyped-call]
    return total


class _SumOverWorkers(torch.autograd.Function):
    """All-reduce whose backward pass needs no second exchange.

    Every worker computes the same loss of the same total, so its slope there is the same on each. What a worker adds to
    the total moves the losses of all, so its gradient is due once for every worker: the mean over workers, which a
    data-parallel step takes, is then the gradient of the one loss.
    """

    @staticmethod
    def forward(_: Any, values: torch.Tensor) -> torch.Tensor:
        total = values.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(_: Any, *gradients: torch.Tensor) -> torch.Tensor:
        return gradients[0] * dist.get_world_size()


def _cross_entropies(logits: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.binary_cross_entropy_with_logits(logits, masks, reduction="none").flatten(1)
