"""Terms of losses: logits and masks (b, 1, i, j, k) to one value per sample (b,), 0 for a perfect prediction."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import edt
import numpy as np
import torch
import torch.distributed as dist

from gtvray.models.monai_parts import DiceLoss, FocalLoss

Term = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
_TOPK_SHARE = 0.1
# One voxel, so that Dice is defined for a patch without tumour.
_SMOOTH = 1.0
_monai_dice = DiceLoss(sigmoid=True, smooth_nr=_SMOOTH, smooth_dr=_SMOOTH, reduction="none")
_monai_focal = FocalLoss(reduction="none")


def dice(logits: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """One minus the soft Dice (Milletari et al., 3DV 2016)."""
    losses: torch.Tensor = _monai_dice(logits, masks)
    return losses.flatten()


def batch_dice(logits: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """One minus the soft Dice of all samples of all workers as one volume, as nnU-Net's batch Dice; a scalar.

    Samples are summed in double precision, so that the sum does not depend on how samples are split over workers.
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
    """Binary cross-entropy, the mean over the tenth of a sample's voxels where it is highest."""
    voxels = _cross_entropies(logits, masks)
    return voxels.topk(max(1, int(voxels.shape[1] * _TOPK_SHARE)), dim=1).values.mean(dim=1)


def focal(logits: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Focal loss, which down-weights well classified voxels (Lin et al., ICCV 2017); always in single precision."""
    voxels: torch.Tensor = _monai_focal(logits, masks)
    return voxels.flatten(1).mean(dim=1)


def boundary(logits: torch.Tensor, masks: torch.Tensor, distances_mm: torch.Tensor) -> torch.Tensor:
    """Mean distance in mm from the contour of wrongly classified voxels (Kervadec et al., MIDL 2019).

    Its gradient is that of the paper's loss, which omits a constant that depends on the mask alone and can be negative.

    Args:
        logits: (b, 1, i, j, k).
        masks: (b, 1, i, j, k).
        distances_mm: `signed_distances_mm` of the masks.
    """
    return ((torch.sigmoid(logits) - masks) * distances_mm).flatten(1).mean(dim=1)


def signed_distances_mm(masks: torch.Tensor, spacing_mm: tuple[float, float, float]) -> torch.Tensor:
    """Distance to the nearest voxel on the other side of the contour, negative inside it.

    Contours outside the patch are unknown. A patch without a contour is all zero.

    Args:
        masks: (b, 1, i, j, k), tumour above one half.
        spacing_mm: of a patch.

    Returns:
        (b, 1, i, j, k), dtype and device of the masks.
    """
    measured = partial(edt.edt, anisotropy=spacing_mm, parallel=1)
    fields: list[np.ndarray[Any, Any]] = []
    for inside in (masks[:, 0] > 0.5).cpu().numpy():
        some = inside.any() and not inside.all()
        fields.append(measured(~inside) - measured(inside) if some else np.zeros(inside.shape, np.float32))
    return torch.from_numpy(np.stack(fields)[:, None]).to(masks)


def sum_over_workers(values: torch.Tensor) -> torch.Tensor:
    """Sum values over all workers, differentiably; with one worker, return them unchanged."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return values
    total: torch.Tensor = _SumOverWorkers.apply(values)  # type: ignore[no-untyped-call]
    return total


class _SumOverWorkers(torch.autograd.Function):
    """All-reduce whose backward pass needs no communication.

    Every worker computes the same loss from the same total, so its gradient with respect to the total is the same on
    each. A worker's contribution changes the losses of all workers, so its gradient is multiplied by their number: the
    mean over workers, which a data-parallel step takes, is then the gradient of the shared loss.
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
