"""Settings of the data room."""

from __future__ import annotations

from pydantic import Field, model_validator

from gtvray.config.base import Section


class SplitConfig(Section):
    """How cases are divided; what is neither selection nor held-out is for training."""

    seed: int = Field(0, ge=0, description="decides which case goes where")
    selection_share: float = Field(0.2, gt=0, lt=1, description="cases that compare trials and epochs")
    held_out_share: float = Field(0.25, gt=0, lt=1, description="cases no choice may look at; promotion is scored here")

    @model_validator(mode="after")
    def _leaves_training_cases(self) -> SplitConfig:
        if self.selection_share + self.held_out_share > 0.8:
            raise ValueError("selection_share + held_out_share must leave at least 0.2 for training")
        return self


class CacheConfig(Section):
    """The prepared-case cache."""

    codec_level: int = Field(3, ge=0, le=9, description="blosc2 zstd level; 0 stores uncompressed")


class AugmentationConfig(Section):
    """Random changes to training patches; probabilities are per patch."""

    flip_left_right: float = Field(0.5, ge=0, le=1, description="probability of mirroring left and right")
    rotate: float = Field(0.2, ge=0, le=1, description="probability of rotating and scaling")
    rotate_degrees: float = Field(12.0, ge=0, le=180, description="largest angle about each axis")
    scale: float = Field(0.12, ge=0, lt=0.9, description="largest relative zoom, in or out")
    noise: float = Field(0.15, ge=0, le=1, description="probability of Gaussian noise")
    brightness: float = Field(0.15, ge=0, le=1, description="probability of scaling and shifting intensities")
    gamma: float = Field(0.15, ge=0, le=1, description="probability of a gamma curve")
