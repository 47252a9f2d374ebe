"""Settings of inference; part of the promoted unit, since they determine the mask."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from gtvray.config.section import Section

SlidingWindow = Literal["monai", "nnunet"]


class InferenceConfig(Section):
    """Sliding-window inference and the step from probabilities to a mask."""

    mode: Literal["exhaustive", "body", "localised"] = Field(
        "body",
        description="patches to run: all of the scan, those that cover the body, or those around the output of a "
        "coarse pass (body where that is uncertain)",
    )
    overlap: float = Field(0.5, ge=0, lt=0.9, description="overlap of neighbouring patches as a share of a patch")
    sliding_window: SlidingWindow = Field(
        "monai", description="rule for patch positions and voxel weights: MONAI's or nnU-Net's"
    )
    batch_size: int = Field(
        2, ge=1, le=256, description="patches per forward pass; batches are padded, so that results are reproducible"
    )
    threshold: float = Field(0.5, gt=0, lt=1, description="tumour probability above which a voxel is marked")
    backend: Literal["torch", "openvino"] = Field("torch", description="inference engine; openvino runs on CPUs only")
    precision: Literal["fp32", "bf16", "fp16"] = Field(
        "fp32", description="precision of the network; fp16 requires torch on CUDA"
    )
    compiled: bool = Field(False, description="use torch.compile, at the cost of a slow start")
    flips: tuple[Literal[0, 1, 2], ...] = Field(
        (),
        description="axes of test-time mirroring (0 right-left, 1 front-back, 2 up-down); combinations are averaged",
    )
    keep_largest: bool = Field(False, description="keep only the largest connected component")

    @property
    def runs_on_gpu(self) -> bool:
        """Whether the backend can use a GPU."""
        return self.backend == "torch"

    @field_validator("flips")
    @classmethod
    def _flips_once(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(value)) != len(value):
            raise ValueError("each axis is named once")
        return value

    @model_validator(mode="after")
    def _backend_can(self) -> InferenceConfig:
        if self.backend == "openvino" and (self.compiled or self.precision == "fp16"):
            raise ValueError("inference.backend=openvino supports neither compiled nor fp16")
        return self
