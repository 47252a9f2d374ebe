"""Settings of the loss."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from gtvray.config.base import Section


class LossConfig(Section):
    """What is minimised."""

    kind: Literal[
        "dice_ce",
        "dice_focal",
        "dice_topk",
        "dice_boundary",
        "batch_dice_ce",
        "batch_dice_focal",
        "batch_dice_topk",
    ] = Field(
        "dice_ce",
        description="Dice plus a loss of voxels: cross-entropy, focal, or cross-entropy of the tenth that is worst; "
        "boundary is cross-entropy and the distance to the contour; batch_dice is Dice of a step's patches as one",
    )
    dice_weight: float = Field(1.0, ge=0, description="weight of the Dice term; the voxel loss has weight 1")
    boundary_weight: float = Field(
        0.01, ge=0, le=100, description="weight of the boundary term of dice_boundary, per millimetre from the contour"
    )
    boundary_warmup_share: float = Field(
        0.5, ge=0, le=1, description="share of the training over which the boundary term comes in, from nothing"
    )
