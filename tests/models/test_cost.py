"""Cost estimates, compared with what torch counts for the network that is built."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from gtvray.config import NetworkConfig
from gtvray.errors import ConfigError
from gtvray.models import build_network, network_cost
from gtvray.models.cost import kept_bytes

SPACING_MM, PATCH_IJK = (1.0, 1.0, 3.0), (16, 16, 8)
VARIANTS: list[dict[str, Any]] = [
    {"kind": "unet"},
    {"kind": "residual_unet", "deep_supervision": True, "features": (4, 8, 8, 8)},
    {"kind": "residual_encoder_unet", "attention": "gates", "blocks": (1, 2, 2)},
    {"kind": "unet", "attention": "squeeze_excitation", "mirror_average": True, "dropout": 0.1},
]


@pytest.mark.parametrize("changes", VARIANTS, ids=str)
def test_cost_equals_what_torch_counts_on_real_memory(changes: dict[str, Any]) -> None:
    config = NetworkConfig(**{"features": (4, 8, 8), **changes})
    patch_ijk = tuple(2 * n for n in PATCH_IJK) if config.deep_supervision else PATCH_IJK
    cost = network_cost(config, 2, SPACING_MM, patch_ijk)
    network = build_network(config, 2, SPACING_MM, patch_ijk)
    patch = torch.rand(1, 2, *patch_ijk)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network.eval()(patch)
    assert cost.parameters == sum(parameter.numel() for parameter in network.parameters())
    assert cost.flops_per_patch == counter.get_total_flops()
    assert cost.activation_bytes_per_patch_fp32 == kept_bytes(network.train(), patch)


def test_saved_activations_are_those_each_layer_needs() -> None:
    """By hand: a convolution saves its input, an in-place ReLU its output, and a shared storage counts once."""
    layers = torch.nn.Sequential(
        torch.nn.Conv3d(1, 2, 3, padding=1), torch.nn.ReLU(inplace=True), torch.nn.Conv3d(2, 4, 1), torch.nn.Sigmoid()
    )
    assert kept_bytes(layers, torch.zeros(1, 1, 8, 8, 8)) == 4 * 8**3 * (1 + 2 + 4)


def test_cost_is_proportional_to_patch_and_batch() -> None:
    config = NetworkConfig(features=(4, 8, 8))
    small, large = (network_cost(config, 1, (3.0, 3.0, 3.0), (n, 16, 16)) for n in (16, 32))
    assert large.parameters == small.parameters
    assert large.flops_per_patch == 2 * small.flops_per_patch
    ratio = large.activation_bytes_per_patch_fp32 / small.activation_bytes_per_patch_fp32
    assert ratio == pytest.approx(2, rel=1e-3)
    network = build_network(config, 1, (3.0, 3.0, 3.0), (16, 16, 16))
    three = kept_bytes(network, torch.zeros(3, 1, 16, 16, 16))
    assert three == 3 * small.activation_bytes_per_patch_fp32


def test_mirror_average_doubles_flops_but_not_parameters() -> None:
    once, twice = (
        network_cost(NetworkConfig(features=(4, 8, 8), mirror_average=mirrored), 1, SPACING_MM, PATCH_IJK)
        for mirrored in (False, True)
    )
    assert twice.parameters == once.parameters
    assert twice.flops_per_patch == 2 * once.flops_per_patch


def test_cost_of_an_invalid_plan_is_an_error() -> None:
    with pytest.raises(ConfigError, match="patch_ijk"):
        network_cost(NetworkConfig(), 1, SPACING_MM, (9, 9, 9))
