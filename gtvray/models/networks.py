"""Networks behind one door: 3D U-Nets whose kernels and strides follow the voxel spacing."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from gtvray.config import NetworkConfig
from gtvray.errors import BundleError
from gtvray.models.planning import plan_network


def build_network(
    config: NetworkConfig, channels: int, spacing_mm: tuple[float, float, float], patch_ijk: tuple[int, int, int]
) -> torch.nn.Module:
    """The network: (b, channels, i, j, k) to tumour logits (b, 1, i, j, k).

    With deep supervision, training mode gives (b, heads, 1, i, j, k), the coarser heads already upsampled.

    Raises:
        ConfigError: as `plan_network`.
    """
    # MONAI loads every optional package it finds, MLflow among them: seconds and 250 MB, which whoever runs a network
    # that was converted before has no use for.
    from gtvray.models.unet import MirrorAverage, PlannedUNet

    plan = plan_network(config, spacing_mm, patch_ijk)
    network = PlannedUNet(plan, channels, config.dropout)
    return MirrorAverage(network) if plan.mirror_average else network


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
