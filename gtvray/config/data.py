"""Settings of the data: split, cache, preprocessing and augmentation."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator

from gtvray.config.section import Section


def _a_pattern(value: str) -> str:
    try:
        re.compile(value)
    except re.error as error:
        raise ValueError(f"a regular expression: {error}") from error
    return value


class SplitConfig(Section):
    """Division of cases into training, selection and held-out cases."""

    seed: int = Field(0, ge=0, description="seed of the assignment of cases")
    selection_share: float = Field(0.2, gt=0, lt=1, description="share of cases used to compare trials and epochs")
    held_out_share: float = Field(
        0.25, gt=0, lt=1, description="share of cases that no choice may use; promotion is scored on them"
    )
    patient_pattern: Annotated[str, AfterValidator(_a_pattern)] = Field(
        "",
        description="regular expression over case ids: its first group, or the full match, identifies the patient, "
        "whose cases stay in one part; empty: patients.csv or patients.json of the dataset is used if present",
    )

    corrections: bool = Field(
        False,
        description="also train on the corrected masks of the workspace (`gtvray corrections`); never on those of "
        "selection and held-out cases",
    )

    @model_validator(mode="after")
    def _leaves_training_cases(self) -> SplitConfig:
        if self.selection_share + self.held_out_share > 0.8:
            raise ValueError("selection_share + held_out_share must leave at least 0.2 for training")
        return self


class CacheConfig(Section):
    """Cache of prepared cases."""

    codec_level: int = Field(3, ge=0, le=9, description="blosc2 lz4 compression level; 0 stores uncompressed")
    max_gb: float = Field(
        0.0,
        ge=0,
        description="size limit; the least recently used cases that are not in use are removed first; 0: no limit",
    )
    local: str | None = Field(
        None,
        description="folder on each node's own disk, to which a training copies the prepared cases that it reads from "
        "shared storage; an absolute path",
    )
    local_max_gb: float = Field(0.0, ge=0, description="size limit of `local` on each node, as `max_gb`")

    @field_validator("local")
    @classmethod
    def _is_absolute(cls, value: str | None) -> str | None:
        # A relative one would be another folder in each process of the cluster.
        if value is not None and not Path(value).is_absolute():
            raise ValueError("must be an absolute path")
        return value


class PreprocessingConfig(Section):
    """Preprocessing from a scan to network input, identical in training and serving; stored in every bundle."""

    spacing_mm: tuple[float, float, float] = Field(
        (3.0, 3.0, 3.0), description="voxel spacing of the prepared grid: right-left, front-back, up-down"
    )
    antialias: bool = Field(
        True, description="average when downsampling; false samples points, as nnU-Net and MONAI do"
    )
    interpolation: Literal["linear", "cubic"] = Field(
        "linear", description="interpolation of scans; cubic is the interpolating spline that nnU-Net uses"
    )
    windows_hu: tuple[tuple[float, float], ...] = Field(
        ((-200.0, 300.0),), description="(low, high) in HU; each becomes a channel scaled to 0..1", min_length=1
    )
    mirrored: bool = Field(
        False,
        description="add a channel for each window with the scan mirrored at its plane of left-right symmetry, so that "
        "the network can compare both sides",
    )
    body_threshold_hu: float = Field(-400.0, description="voxels below this value are air when the body is located")
    body_margin_mm: float = Field(6.0, ge=0, le=100, description="margin kept around the body")

    @property
    def channels(self) -> int:
        """Number of input channels of the network."""
        return len(self.windows_hu) * (2 if self.mirrored else 1)

    @field_validator("spacing_mm")
    @classmethod
    def _spacing_plausible(cls, value: tuple[float, float, float]) -> tuple[float, float, float]:
        if not all(0.3 <= v <= 20 for v in value):
            raise ValueError("spacing must be 0.3 to 20 mm on each axis")
        return value

    @field_validator("windows_hu")
    @classmethod
    def _windows_ordered(cls, value: tuple[tuple[float, float], ...]) -> tuple[tuple[float, float], ...]:
        if any(low >= high for low, high in value):
            raise ValueError("a window is (low, high) with low < high")
        return value


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
    """Random transforms of training patches, applied in this order except for mirroring; probabilities are per patch.

    Ranges are those of nnU-Net's default 3D trainer and `strength` scales all of them. A probability of 0 switches a
    transform off.
    """

    strength: float = Field(
        0.5, ge=0, le=1, description="share of every range below that is used: 1 is nnU-Net's range, 0 none"
    )
    flip_left_right: float = Field(0.5, ge=0, le=1, description="probability of mirroring left-right")
    flip_front_back: float = Field(0.0, ge=0, le=1, description="probability of mirroring front-back; nnU-Net: 0.5")
    flip_up_down: float = Field(0.0, ge=0, le=1, description="probability of mirroring up-down; nnU-Net: 0.5")
    rotate: float = Field(0.2, ge=0, le=1, description="probability of rotation")
    rotate_degrees: float = Field(
        30.0, ge=0, le=180, description="maximum angle about each axis; only one axis for anisotropic voxels (1:3)"
    )
    zoom: float = Field(0.2, ge=0, le=1, description="probability of zooming")
    zoom_range: Factors = Field(
        (0.7, 1.4), description="factor on the field of view of a patch; above 1 structures look smaller"
    )
    elastic: float = Field(0.0, ge=0, le=1, description="probability of elastic deformation; nnU-Net: 0")
    elastic_mm: float = Field(8.0, ge=0, le=50, description="maximum displacement along each axis in mm")
    elastic_grid_mm: float = Field(40.0, ge=10, le=500, description="spacing of the displacement grid in mm")
    noise: float = Field(0.1, ge=0, le=1, description="probability of Gaussian noise")
    noise_sigma: float = Field(0.1, ge=0, le=1, description="maximum standard deviation as a share of the window")
    blur: float = Field(0.1, ge=0, le=1, description="probability of Gaussian blur")
    blur_sigma_voxels: Span = Field((0.5, 1.0), description="standard deviation along each axis in voxels")
    brightness: float = Field(0.15, ge=0, le=1, description="probability of scaling intensities")
    brightness_range: Factors = Field((0.75, 1.25), description="factor")
    contrast: float = Field(0.15, ge=0, le=1, description="probability of scaling distances from the mean")
    contrast_range: Factors = Field((0.75, 1.25), description="factor; the value range of the patch is preserved")
    low_resolution: float = Field(0.125, ge=0, le=1, description="probability of simulating lower resolution")
    low_resolution_scale: float = Field(0.5, gt=0.05, le=1, description="minimum share of voxels kept on an axis")
    gamma_inverted: float = Field(0.1, ge=0, le=1, description="probability of a gamma curve on inverted intensities")
    gamma: float = Field(
        0.3, ge=0, le=1, description="probability of a gamma curve; mean and standard deviation are preserved"
    )
    gamma_range: Factors = Field((0.7, 1.5), description="exponent")
    on_gpu: bool = Field(True, description="augment patches on the GPU if training.use_gpu is set")
