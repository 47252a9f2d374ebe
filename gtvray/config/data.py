"""Settings of the data room."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, Field, model_validator

from gtvray.config.base import Section


def _a_pattern(value: str) -> str:
    try:
        re.compile(value)
    except re.error as error:
        raise ValueError(f"a regular expression: {error}") from error
    return value


class SplitConfig(Section):
    """How cases are divided; what is neither selection nor held-out is for training."""

    seed: int = Field(0, ge=0, description="decides which case goes where")
    selection_share: float = Field(0.2, gt=0, lt=1, description="cases that compare trials and epochs")
    held_out_share: float = Field(0.25, gt=0, lt=1, description="cases no choice may look at; promotion is scored here")
    patient_pattern: Annotated[str, AfterValidator(_a_pattern)] = Field(
        "",
        description="regular expression over case ids: its first group, or all it matches, is the patient, whose cases "
        "stay on one side; empty: patients.csv or patients.json in the dataset tells, if it is there",
    )

    @model_validator(mode="after")
    def _leaves_training_cases(self) -> SplitConfig:
        if self.selection_share + self.held_out_share > 0.8:
            raise ValueError("selection_share + held_out_share must leave at least 0.2 for training")
        return self


class CacheConfig(Section):
    """The prepared-case cache."""

    codec_level: int = Field(3, ge=0, le=9, description="blosc2 lz4 level; 0 stores uncompressed")
    max_gb: float = Field(
        0.0, ge=0, description="bound of the cache; cases least recently used go first, those in use stay; 0 is none"
    )


def _around_one(value: tuple[float, float]) -> tuple[float, float]:
    if not 0.1 <= value[0] <= 1 <= value[1] <= 10:
        raise ValueError("a range of factors is (low, high) with 0.1 <= low <= 1 <= high <= 10")
    return value


def _ordered(value: tuple[float, float]) -> tuple[float, float]:
    if not 0 < value[0] <= value[1] <= 10:
        raise ValueError("a range is (low, high) with 0 < low <= high <= 10")
    return value


Factors = Annotated[tuple[float, float], AfterValidator(_around_one)]
Span = Annotated[tuple[float, float], AfterValidator(_ordered)]


class AugmentationConfig(Section):
    """Random changes to training patches, in this order but for the mirroring; probabilities are per patch.

    Ranges are those of nnU-Net's default 3-D trainer and `strength` says how much of them is used, so it is the one
    dial to turn; each probability and range can be set beside it. A probability of 0 switches a change off.
    """

    strength: float = Field(
        0.5, ge=0, le=1, description="share of every range below that is used: 1 is nnU-Net's, 0 none of it"
    )
    flip_left_right: float = Field(0.5, ge=0, le=1, description="probability of mirroring left and right")
    flip_front_back: float = Field(0.0, ge=0, le=1, description="probability of mirroring front and back; nnU-Net: 0.5")
    flip_up_down: float = Field(0.0, ge=0, le=1, description="probability of mirroring up and down; nnU-Net: 0.5")
    rotate: float = Field(0.2, ge=0, le=1, description="probability of rotating")
    rotate_degrees: float = Field(
        30.0, ge=0, le=180, description="largest angle about each axis; about one alone where voxels are flat (1:3)"
    )
    zoom: float = Field(0.2, ge=0, le=1, description="probability of zooming")
    zoom_range: Factors = Field(
        (0.7, 1.4), description="a patch spans this many times its own size, so above 1 things look smaller"
    )
    elastic: float = Field(0.0, ge=0, le=1, description="probability of an elastic deformation; nnU-Net has none")
    elastic_mm: float = Field(8.0, ge=0, le=50, description="largest displacement along each axis in millimetres")
    elastic_grid_mm: float = Field(40.0, ge=10, le=500, description="distance between points displaced independently")
    noise: float = Field(0.1, ge=0, le=1, description="probability of Gaussian noise")
    noise_sigma: float = Field(0.1, ge=0, le=1, description="largest standard deviation, as a share of the window")
    blur: float = Field(0.1, ge=0, le=1, description="probability of Gaussian blur")
    blur_sigma_voxels: Span = Field((0.5, 1.0), description="standard deviation along each axis")
    brightness: float = Field(0.15, ge=0, le=1, description="probability of multiplying intensities")
    brightness_range: Factors = Field((0.75, 1.25), description="factor")
    contrast: float = Field(0.15, ge=0, le=1, description="probability of multiplying distances from the mean")
    contrast_range: Factors = Field((0.75, 1.25), description="factor; the patch's own range is kept")
    low_resolution: float = Field(0.125, ge=0, le=1, description="probability of simulating coarser voxels")
    low_resolution_scale: float = Field(0.5, gt=0.05, le=1, description="smallest share of voxels kept on an axis")
    gamma_inverted: float = Field(0.1, ge=0, le=1, description="probability of a gamma curve on inverted intensities")
    gamma: float = Field(0.3, ge=0, le=1, description="probability of a gamma curve; mean and spread are kept")
    gamma_range: Factors = Field((0.7, 1.5), description="exponent")
    on_gpu: bool = Field(True, description="with training.use_gpu, change patches on the GPU and not on the CPU")
