"""Settings of the network."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from gtvray.config.base import Section


class NetworkConfig(Section):
    """Which network, and how large."""

    kind: Literal["unet", "residual_unet"] = Field("unet", description="plain or residual-encoder 3D U-Net")
    size: Literal["tiny", "small", "base", "large"] = Field("small", description="the dial: width and depth follow it")
    features: tuple[int, ...] | None = Field(None, description="channels of each stage; overrides what size gives")
    dropout: float = Field(0.0, ge=0, lt=1, description="share of channels dropped in training")
    deep_supervision: bool = Field(False, description="a loss on the coarser decoder stages as well")

    @field_validator("features")
    @classmethod
    def _features_plausible(cls, value: tuple[int, ...] | None) -> tuple[int, ...] | None:
        if value is not None and not (len(value) >= 3 and all(1 <= v <= 4096 for v in value)):
            raise ValueError("features are 1 to 4096 channels for each of at least 3 stages")
        return value
