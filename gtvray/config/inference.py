"""Settings of inference; part of the promoted unit, since they shape the mask."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from gtvray.config.base import Section

SlidingWindow = Literal["monai", "nnunet"]


class InferenceConfig(Section):
    """How patches become a mask."""

    mode: Literal["exhaustive", "body", "localised"] = Field(
        "body",
        description="every patch of the whole scan, those on the body, or those about what a coarse pass finds (the "
        "body if in doubt)",
    )
    overlap: float = Field(0.5, ge=0, lt=0.9, description="share of a patch that its neighbour covers again")
    sliding_window: SlidingWindow = Field(
        "monai", description="whose rule says where patches lie and what their voxels weigh: MONAI's or nnU-Net's"
    )
    batch_size: int = Field(2, ge=1, le=256, description="patches a forward pass; always filled up, so results repeat")
    threshold: float = Field(0.5, gt=0, lt=1, description="tumour probability above which a voxel is marked")
    backend: Literal["torch", "openvino"] = Field("torch", description="what runs the network; openvino on CPUs only")
    precision: Literal["fp32", "bf16", "fp16"] = Field(
        "fp32", description="arithmetic of the network; fp16 with torch on CUDA only"
    )
    compiled: bool = Field(False, description="have torch compile the network, at the cost of a slow start")
    flips: tuple[Literal[0, 1, 2], ...] = Field(
        (),
        description="axes (0 right-left, 1 front-back, 2 up-down) on which patches are mirrored too; every combination "
        "is run and averaged",
    )
    keep_largest: bool = Field(False, description="keep only the largest connected component")

    @field_validator("flips")
    @classmethod
    def _flips_once(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(value)) != len(value):
            raise ValueError("each axis is named once")
        return value

    @model_validator(mode="after")
    def _backend_can(self) -> InferenceConfig:
        if self.backend == "openvino" and (self.compiled or self.precision == "fp16"):
            raise ValueError("inference.backend=openvino has neither compiled nor fp16")
        return self
