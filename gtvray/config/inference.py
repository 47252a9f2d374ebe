"""Settings of inference; part of the promoted unit, since they shape the mask."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from gtvray.config.base import Section


class InferenceConfig(Section):
    """How patches become a mask."""

    mode: Literal["exhaustive", "body", "localised"] = Field(
        "body",
        description="every patch, those on the body, or those about what a coarse pass finds (the body if in doubt)",
    )
    overlap: float = Field(0.5, ge=0, lt=0.9, description="share of a patch that its neighbour covers again")
    batch_size: int = Field(2, ge=1, le=256, description="patches a forward pass; always filled up, so results repeat")
    threshold: float = Field(0.5, gt=0, lt=1, description="tumour probability above which a voxel is marked")
    precision: Literal["fp32", "bf16"] = Field("fp32", description="arithmetic of the network")
    keep_largest: bool = Field(False, description="keep only the largest connected component")
