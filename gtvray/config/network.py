"""Settings of the network."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from gtvray.config.section import Section

Axes = tuple[int, int, int]
_FEWEST_STAGES = 3


def _enough_stages(value: tuple[object, ...] | None) -> tuple[object, ...] | None:
    if value is not None and len(value) < _FEWEST_STAGES:
        raise ValueError(f"one entry for each of at least {_FEWEST_STAGES} stages")
    return value


def _channels(value: tuple[int, ...] | None) -> tuple[int, ...] | None:
    if value is not None and not (len(value) >= _FEWEST_STAGES and all(1 <= v <= 4096 for v in value)):
        raise ValueError("features are 1 to 4096 channels for each of at least 3 stages")
    return value


def _blocks(value: tuple[int, ...] | None) -> tuple[int, ...] | None:
    if not all(1 <= v <= 16 for v in value or ()):
        raise ValueError("1 to 16 blocks per stage")
    return value


def _kernels(value: tuple[Axes, ...] | None) -> tuple[Axes, ...] | None:
    if not all(v in (1, 3, 5, 7) for kernel in value or () for v in kernel):
        raise ValueError("a kernel is 1, 3, 5 or 7 voxels along each axis")
    return value


def _strides(value: tuple[Axes, ...] | None) -> tuple[Axes, ...] | None:
    if value is None:
        return value
    if not all(v in (1, 2) for stride in value for v in stride):
        raise ValueError("a stride is 1 or 2 along each axis")
    if value[0] != (1, 1, 1) or (1, 1, 1) in value[1:]:
        raise ValueError("the first stage has stride [1, 1, 1] and every other halves an axis or more")
    return value


def _subvoxels(value: Axes) -> Axes:
    if not all(1 <= v <= 4 for v in value):
        raise ValueError("1 to 4 voxels along each axis")
    return value


Stages = AfterValidator(_enough_stages)


class NetworkConfig(Section):
    """Architecture and size of the network."""

    kind: Literal["unet", "residual_unet", "residual_encoder_unet"] = Field(
        "unet",
        description="3D U-Net with plain blocks, with residual blocks, or with several residual blocks per encoder "
        "stage and a light decoder",
    )
    size: Literal["tiny", "small", "base", "large"] = Field("small", description="preset of width and depth")
    features: Annotated[tuple[int, ...] | None, AfterValidator(_channels)] = Field(
        None, description="channels of each stage; overrides size"
    )
    blocks: Annotated[tuple[int, ...] | None, Stages, AfterValidator(_blocks)] = Field(
        None, description="convolution blocks of each encoder stage; overrides kind and size"
    )
    kernels: Annotated[tuple[Axes, ...] | None, Stages, AfterValidator(_kernels)] = Field(
        None, description="kernel size of each stage in voxels; by default derived from the spacing"
    )
    strides: Annotated[tuple[Axes, ...] | None, Stages, AfterValidator(_strides)] = Field(
        None, description="stride of each stage; by default derived from spacing and patch size"
    )
    attention: Literal["none", "gates", "squeeze_excitation"] = Field(
        "none",
        description="attention gates on skip connections, or squeeze-and-excitation after each encoder stage",
    )
    mirror_average: bool = Field(
        False,
        description="average the outputs for a patch and its left-right mirror image, in training and inference; "
        "doubles the cost",
    )
    subvoxels: Annotated[Axes, AfterValidator(_subvoxels)] = Field(
        (1, 1, 1),
        description="block of voxels that is folded into channels, so that the network works on a coarser grid at "
        "lower cost and predicts every voxel of the block",
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout rate of channels")
    deep_supervision: bool = Field(False, description="add losses on coarser decoder stages")

    @model_validator(mode="after")
    def _as_many_stages(self) -> NetworkConfig:
        given = {key: getattr(self, key) for key in ("features", "blocks", "kernels", "strides")}
        depths = {f"network.{key}": len(value) for key, value in given.items() if value is not None}
        if len(set(depths.values())) > 1:
            counts = ", ".join(f"{key} has {depth}" for key, depth in depths.items())
            raise ValueError(f"lists must have the same number of stages: {counts}")
        return self
