"""Networks behind one door: 3D U-Nets whose kernels and strides follow the voxel spacing.

As nnU-Net does (Isensee et al., Nature Methods 2021), an axis is not pooled or convolved while its spacing is at least
twice the finest one's, nor pooled once its patch is down to four voxels. Blocks are MONAI's DynUNet.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from monai.networks.nets.dynunet import DynUNet

from gtvray.config import NetworkConfig
from gtvray.errors import BundleError, ConfigError

# Widths are multiples of 16: bf16 kernels on CPU and GPU are built for those.
FEATURES: dict[str, tuple[int, ...]] = {
    "tiny": (16, 32, 48, 64),
    "small": (16, 32, 64, 128, 160),
    "base": (32, 64, 128, 256, 320),
    "large": (32, 64, 128, 256, 320, 320),
}
_ANISOTROPY = 2.0
_SMALLEST_AXIS = 4
_FEWEST_STAGES = 3


@dataclass(frozen=True)
class NetworkPlan:
    """A network in numbers: per stage its channels, its kernel and the stride it begins with."""

    features: tuple[int, ...]
    kernels: tuple[tuple[int, int, int], ...]
    strides: tuple[tuple[int, int, int], ...]

    @property
    def divisor_ijk(self) -> tuple[int, int, int]:
        """What a patch's size must be a multiple of."""
        product = [1, 1, 1]
        for stride in self.strides:
            product = [p * s for p, s in zip(product, stride, strict=True)]
        return product[0], product[1], product[2]


def plan_network(
    config: NetworkConfig, spacing_mm: tuple[float, float, float], patch_ijk: tuple[int, int, int]
) -> NetworkPlan:
    """Derive kernels and strides from spacing and patch; stages that could pool no axis are left out.

    Raises:
        ConfigError: the patch cannot be halved twice, which a U-Net needs.
    """
    features = config.features or FEATURES[config.size]
    spacing, size = list(spacing_mm), list(patch_ijk)
    strides: list[tuple[int, int, int]] = [(1, 1, 1)]
    kernels = [_kernel(spacing)]
    for _ in features[1:]:
        finest = min(spacing)
        stride = [
            2 if s < _ANISOTROPY * finest and n % 2 == 0 and n // 2 >= _SMALLEST_AXIS else 1
            for s, n in zip(spacing, size, strict=True)
        ]
        if stride == [1, 1, 1]:
            break
        spacing = [s * t for s, t in zip(spacing, stride, strict=True)]
        size = [n // t for n, t in zip(size, stride, strict=True)]
        strides.append((stride[0], stride[1], stride[2]))
        kernels.append(_kernel(spacing))
    if len(strides) < _FEWEST_STAGES:
        raise ConfigError(
            "training.patch_ijk cannot be halved twice on any axis",
            expected="16 voxels or more, a multiple of 4",
            found=patch_ijk,
            do="make it a multiple of 16",
        )
    return NetworkPlan(tuple(features[: len(strides)]), tuple(kernels), tuple(strides))


def build_network(
    config: NetworkConfig, channels: int, spacing_mm: tuple[float, float, float], patch_ijk: tuple[int, int, int]
) -> torch.nn.Module:
    """The network: (b, channels, i, j, k) to tumour logits (b, 1, i, j, k).

    With deep supervision, training mode gives (b, heads, 1, i, j, k), the coarser heads already upsampled.
    """
    plan = plan_network(config, spacing_mm, patch_ijk)
    supervised = config.deep_supervision and len(plan.features) > 3
    network: torch.nn.Module = DynUNet(
        spatial_dims=3,
        in_channels=channels,
        out_channels=1,
        kernel_size=plan.kernels,
        strides=plan.strides,
        upsample_kernel_size=plan.strides[1:],
        filters=plan.features,
        dropout=config.dropout or None,
        norm_name=("INSTANCE", {"affine": True}),
        deep_supervision=supervised,
        deep_supr_num=min(2, len(plan.features) - 3) if supervised else 1,
        res_block=config.kind == "residual_unet",
    )
    return network


def weights_of(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The network's parameters, each once (a DynUNet's state dict names most of them twice)."""
    return {name: parameter.detach() for name, parameter in network.named_parameters()}


def load_weights(network: torch.nn.Module, weights: Mapping[str, torch.Tensor]) -> None:
    """Put back what `weights_of` took.

    Raises:
        BundleError: they are another network's.
    """
    own = dict(network.named_parameters())
    odd = sorted(set(own) ^ set(weights)) or [n for n, p in own.items() if p.shape != weights[n].shape]
    if odd:
        raise BundleError("weights do not fit the network", found=f"{odd[0]} and {len(odd) - 1} more")
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(weights[name])


def _kernel(spacing: list[float]) -> tuple[int, int, int]:
    i, j, k = (3 if s < _ANISOTROPY * min(spacing) else 1 for s in spacing)
    return i, j, k
