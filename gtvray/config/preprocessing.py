"""Settings of the one preprocessing path, used for training and serving alike."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from gtvray.config.base import Section


class PreprocessingConfig(Section):
    """What stands between a scan and the network; part of every bundle."""

    spacing_mm: tuple[float, float, float] = Field(
        (3.0, 3.0, 3.0), description="voxel spacing the network sees: right-left, front-back, up-down"
    )
    antialias: bool = Field(
        True, description="average over a coarser voxel; false samples a point in it, as nnU-Net and MONAI do"
    )
    interpolation: Literal["linear", "cubic"] = Field(
        "linear", description="between the scan's voxels; cubic is the interpolating spline, as nnU-Net uses"
    )
    windows_hu: tuple[tuple[float, float], ...] = Field(
        ((-200.0, 300.0),), description="(low, high) in HU; each becomes a channel scaled to 0..1", min_length=1
    )
    mirrored: bool = Field(
        False,
        description="every window once more, of the scan mirrored about the plane that best mirrors the head: the "
        "network sees what is on one side only",
    )
    body_threshold_hu: float = Field(-400.0, description="darker than this is air when the body is looked for")
    body_margin_mm: float = Field(6.0, ge=0, le=100, description="kept around the body")

    @property
    def channels(self) -> int:
        """How many the network is given."""
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
