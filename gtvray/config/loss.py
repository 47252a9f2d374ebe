"""Settings of the loss."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from gtvray.config.base import Section


class LossConfig(Section):
    """What is minimised."""

    kind: Literal["dice_ce", "dice_focal", "dice_topk"] = Field(
        "dice_ce", description="per-sample Dice plus a voxel loss"
    )
    dice_weight: float = Field(1.0, ge=0, description="weight of the Dice term; the voxel loss has weight 1")
