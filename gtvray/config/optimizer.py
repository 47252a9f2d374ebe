"""Settings of the optimizer."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from gtvray.config.base import Section


class OptimizerConfig(Section):
    """How it is minimised."""

    kind: Literal["adamw", "sgd"] = Field("adamw", description="AdamW, or SGD with Nesterov momentum 0.99")
    lr: float = Field(2e-3, gt=0, le=1, description="peak learning rate")
    weight_decay: float = Field(1e-4, ge=0, le=1, description="decoupled for adamw")
    warmup_share: float = Field(0.05, ge=0, lt=1, description="share of all steps that raise the rate from zero")
    clip_norm: float = Field(12.0, gt=0, description="largest gradient norm")
