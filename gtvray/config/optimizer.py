"""Settings of the optimizer."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from gtvray.config.base import Section


class OptimizerConfig(Section):
    """How it is minimised."""

    kind: Literal["adamw", "sgd"] = Field("adamw", description="AdamW, or SGD with Nesterov momentum")
    momentum: float = Field(0.99, ge=0, lt=1, description="of sgd")
    lr: float = Field(2e-3, gt=0, le=1, description="peak learning rate")
    weight_decay: float = Field(1e-4, ge=0, le=1, description="decoupled for adamw")
    schedule: Literal["poly", "cosine", "constant"] = Field(
        "poly", description="of the learning rate after the warm-up: (1 - t)^0.9 as nnU-Net's, half a cosine, or none"
    )
    warmup_share: float = Field(0.05, ge=0, lt=1, description="share of all steps that raise the rate from zero")
    clip_norm: float = Field(12.0, gt=0, description="largest norm of the gradient over all parameters")
