"""What a network costs, found on torch's meta device: every layer is run, nothing is computed and no memory taken."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from gtvray.config import NetworkConfig
from gtvray.models.networks import build_network


@dataclass(frozen=True)
class NetworkCost:
    """A network's cost for one patch.

    Attributes:
        parameters: trainable numbers.
        flops_per_patch: floating-point operations of a forward pass, two a multiply-add, of convolutions and matrix
            products alone. A training step takes about three times as many.
        activation_bytes_per_patch_fp32: what a forward pass in training keeps for the backward pass, in fp32; weights
            and whatever lives only within a layer are not in it.
    """

    parameters: int
    flops_per_patch: int
    activation_bytes_per_patch_fp32: int


def network_cost(
    config: NetworkConfig, channels: int, spacing_mm: tuple[float, float, float], patch_ijk: tuple[int, int, int]
) -> NetworkCost:
    """Cost of the network that `build_network` builds for the same arguments.

    Raises:
        ConfigError: as `build_network`.
    """
    with torch.device("meta"):
        network = build_network(config, channels, spacing_mm, patch_ijk)
        patch = torch.empty(1, channels, *patch_ijk)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network.eval()(patch)
    return NetworkCost(
        parameters=sum(parameter.numel() for parameter in network.parameters()),
        flops_per_patch=counter.get_total_flops(),
        activation_bytes_per_patch_fp32=kept_bytes(network.train(), patch),
    )


def kept_bytes(network: torch.nn.Module, patches: torch.Tensor) -> int:
    """Bytes that a forward pass keeps for the backward pass, each memory block once, weights left out."""
    weights = {parameter.untyped_storage() for parameter in network.parameters()}
    kept: set[torch.UntypedStorage] = set()

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.add(tensor.untyped_storage())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        # Alive until counted: a block that is freed could be handed out again and pass for the same one.
        answer = network(patches)
    total = sum(block.nbytes() for block in kept - weights)
    del answer
    return total
