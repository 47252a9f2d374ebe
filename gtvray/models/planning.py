"""Architecture of a network: depth, channels, blocks, kernels and strides from size, spacing and patch.

As in nnU-Net (Isensee et al., Nature Methods 2021), an axis is neither pooled nor convolved while its spacing is at
least twice the finest, nor pooled once four voxels are left along it. Values set in the config are kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import prod
from typing import Any

from gtvray.config import NetworkConfig
from gtvray.errors import ConfigError
from gtvray.io import Table

Axes = tuple[int, int, int]
Millimetres = tuple[float, float, float]

# Widths are multiples of 16: bf16 kernels on CPU and GPU are built for those.
FEATURES: dict[str, tuple[int, ...]] = {
    "tiny": (16, 32, 48, 64),
    "small": (16, 32, 64, 128, 160),
    "base": (32, 64, 128, 256, 320),
    "large": (32, 64, 128, 256, 320, 320),
}
# Blocks per stage of the residual encoder; those of base are nnU-Net's presets (Isensee et al., MICCAI 2024).
ENCODER_BLOCKS: dict[str, tuple[int, ...]] = {
    "tiny": (1, 2, 2, 2),
    "small": (1, 2, 3, 4, 4),
    "base": (1, 3, 4, 6, 6),
    "large": (2, 4, 6, 8, 8, 8),
}
_ANISOTROPY = 2.0
_SMALLEST_AXIS = 4
_FEWEST_STAGES = 3
_MOST_HEADS = 2


@dataclass(frozen=True)
class Stage:
    """One stage: its layers, and the grid it operates on."""

    features: int
    blocks: int
    kernel: Axes
    stride: Axes
    size_ijk: Axes
    spacing_mm: Millimetres

    @property
    def why(self) -> str:
        """Which axes are not convolved here, and why."""
        finest = min(self.spacing_mm)
        flat = [
            f"{axis} is {mm / finest:.2g} times as coarse as the finest: not convolved"
            for axis, mm, kernel in zip("ijk", self.spacing_mm, self.kernel, strict=True)
            if kernel == 1 and mm >= _ANISOTROPY * finest
        ]
        return "; ".join(flat)


@dataclass(frozen=True)
class NetworkPlan:
    """The architecture of a network, finest stage first.

    Attributes:
        kind, attention, mirror_average: as in the config.
        stages: of the encoder; the decoder mirrors them.
        subvoxels: voxels of a patch along each axis that form one voxel of the first stage.
        heads: coarser decoder stages with logits of their own in training.
        origins: dotted key -> origin of its value.
    """

    kind: str
    stages: tuple[Stage, ...]
    attention: str
    mirror_average: bool
    subvoxels: Axes
    heads: int
    origins: dict[str, str]

    @property
    def features(self) -> tuple[int, ...]:
        """Channels of each stage."""
        return tuple(stage.features for stage in self.stages)

    @property
    def kernels(self) -> tuple[Axes, ...]:
        """Kernel of each stage."""
        return tuple(stage.kernel for stage in self.stages)

    @property
    def strides(self) -> tuple[Axes, ...]:
        """Stride at the start of each stage."""
        return tuple(stage.stride for stage in self.stages)

    @property
    def divisor_ijk(self) -> Axes:
        """Number of voxels that the size of a patch must be a multiple of, along each axis."""
        return _product([*self.strides, self.subvoxels])

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {**asdict(self), "divisor_ijk": list(self.divisor_ijk)}

    def as_text(self) -> str:
        """A table of the stages, and the origin of each value."""
        title = f"{self.kind}, {len(self.stages)} stages, attention {self.attention}, coarser heads {self.heads}"
        if self.subvoxels != (1, 1, 1):
            title += f", {_times(self.subvoxels)} voxels as channels of one"
        rows = []
        for number, stage in enumerate(self.stages):
            axes = [_times(each) for each in (stage.kernel, stage.stride, stage.size_ijk, stage.spacing_mm)]
            rows.append((number, stage.features, stage.blocks, *axes, stage.why))
        table = Table(("stage", "channels", "blocks", "kernel", "stride", "voxels", "mm", ""), rows)
        return "\n".join([title, table.text(), *(f"{key}: {origin}" for key, origin in self.origins.items())])


def plan_network(config: NetworkConfig, spacing_mm: Millimetres, patch_ijk: Axes) -> NetworkPlan:
    """Plan the stages of a network; stages that would pool no axis are omitted.

    Args:
        config: size and kind, and explicit values.
        spacing_mm: of a patch.
        patch_ijk: voxels of a patch along each axis.

    Raises:
        ConfigError: the patch cannot be halved as often as the strides require, or less than twice.
    """
    whole_ijk, subvoxels = patch_ijk, config.subvoxels
    if any(n % s for n, s in zip(patch_ijk, subvoxels, strict=True)):
        raise ConfigError(
            "network.subvoxels do not divide training.patch_ijk",
            expected=f"a multiple of {_times(subvoxels)} voxels",
            found=patch_ijk,
            do="change training.patch_ijk or network.subvoxels",
        )
    spacing_mm, patch_ijk = _times_each(spacing_mm, subvoxels), _divided(patch_ijk, subvoxels)
    strides = config.strides or _strides(_deepest(config), spacing_mm, patch_ijk)
    if len(strides) < _FEWEST_STAGES:
        raise ConfigError(
            "training.patch_ijk cannot be halved twice on any axis",
            expected="16 voxels or more, a multiple of 4, for each of network.subvoxels",
            found=whole_ijk,
            do="make it a multiple of 16",
        )
    _check_patch(strides, patch_ijk)
    depth = len(strides)
    features = _fitted(config.features or FEATURES[config.size], depth)
    blocks = _fitted(config.blocks or _blocks(config), depth)
    stages: list[Stage] = []
    spacing, size = spacing_mm, patch_ijk
    for number, stride in enumerate(strides):
        spacing, size = _times_each(spacing, stride), _divided(size, stride)
        kernel = config.kernels[number] if config.kernels else _kernel(spacing)
        stages.append(Stage(features[number], blocks[number], kernel, stride, size, spacing))
    heads = min(_MOST_HEADS, depth - _FEWEST_STAGES) if config.deep_supervision else 0
    return NetworkPlan(
        config.kind, tuple(stages), config.attention, config.mirror_average, subvoxels, heads, _origins(config)
    )


def _deepest(config: NetworkConfig) -> int:
    """The largest number of stages."""
    return len(config.features or config.blocks or config.kernels or FEATURES[config.size])


def _strides(deepest: int, spacing_mm: Millimetres, patch_ijk: Axes) -> tuple[Axes, ...]:
    spacing, size = spacing_mm, patch_ijk
    strides: list[Axes] = [(1, 1, 1)]
    for _ in range(deepest - 1):
        finest = min(spacing)
        i, j, k = (
            2 if mm < _ANISOTROPY * finest and n % 2 == 0 and n // 2 >= _SMALLEST_AXIS else 1
            for mm, n in zip(spacing, size, strict=True)
        )
        if (i, j, k) == (1, 1, 1):
            break
        strides.append((i, j, k))
        spacing, size = _times_each(spacing, strides[-1]), _divided(size, strides[-1])
    return tuple(strides)


def _check_patch(strides: tuple[Axes, ...], patch_ijk: Axes) -> None:
    divisor = _product(strides)
    bottom = _divided(patch_ijk, divisor)
    if any(n % d for n, d in zip(patch_ijk, divisor, strict=True)):
        raise ConfigError(
            "network.strides do not divide training.patch_ijk",
            expected=f"a multiple of {_times(divisor)} voxels",
            found=patch_ijk,
            do="change the patch, or remove a stage",
        )
    # Instance normalisation divides by the standard deviation, which is zero for one voxel.
    if bottom == (1, 1, 1):
        raise ConfigError(
            "network.strides reduce training.patch_ijk to one voxel",
            expected=f"a patch larger than {_times(divisor)} on an axis",
            found=patch_ijk,
            do="make the patch larger, or remove a stage",
        )


def _blocks(config: NetworkConfig) -> tuple[int, ...]:
    return ENCODER_BLOCKS[config.size] if config.kind == "residual_encoder_unet" else (1,)


def _kernel(spacing_mm: Millimetres) -> Axes:
    i, j, k = (3 if mm < _ANISOTROPY * min(spacing_mm) else 1 for mm in spacing_mm)
    return i, j, k


def _origins(config: NetworkConfig) -> dict[str, str]:
    derived = {
        "features": f"network.size={config.size}",
        "blocks": f"network.kind={config.kind}, network.size={config.size}",
        "kernels": "3 voxels; 1 along an axis at least twice as coarse as the finest",
        "strides": "2 along each axis that is less than twice as coarse as the finest and keeps 4 voxels",
    }
    return {
        f"network.{key}": "set in the config" if getattr(config, key) is not None else origin
        for key, origin in derived.items()
    }


def _fitted(values: tuple[int, ...], depth: int) -> tuple[int, ...]:
    """Truncate to the depth, or repeat the last value."""
    return (*values, *[values[-1]] * depth)[:depth]


def _product(strides: Sequence[Axes]) -> Axes:
    i, j, k = (prod(along) for along in zip(*strides, strict=True))
    return i, j, k


def _times_each(spacing_mm: Millimetres, stride: Axes) -> Millimetres:
    i, j, k = (mm * n for mm, n in zip(spacing_mm, stride, strict=True))
    return i, j, k


def _divided(size_ijk: Axes, stride: Axes) -> Axes:
    i, j, k = (n // s for n, s in zip(size_ijk, stride, strict=True))
    return i, j, k


def _times(values: Axes | Millimetres) -> str:
    return "x".join(f"{value:g}" for value in values)
