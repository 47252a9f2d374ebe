"""Cost of a network, measured on torch's meta device: layers run without computing or allocating anything."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from gtvray.config import NetworkConfig
from gtvray.models.networks import build_network


@dataclass(frozen=True)
class NetworkCost:
    """Cost of a network for one patch.

    Attributes:
        parameters: number of trainable parameters.
        flops_per_patch: floating-point operations of a forward pass, two per multiply-add, of convolutions and matrix
            products only. A training step takes about three times as many.
        activation_bytes_per_patch_fp32: memory that a forward pass in training saves for the backward pass, in fp32,
            without weights and temporary tensors of a layer.
    """

    parameters: int
    flops_per_patch: int
    activation_bytes_per_patch_fp32: int


def network_cost(
    config: NetworkConfig, channels: int, spacing_mm: tuple[float, float, float], patch_ijk: tuple[int, int, int]
) -> NetworkCost:
    """Measure the network that `build_network` builds for the same arguments.

    Raises:
        ConfigError: as `build_network`.
    """
    with torch.device("meta"), _WithoutRandomWeights():
        network = build_network(config, channels, spacing_mm, patch_ijk)
        patch = torch.empty(1, channels, *patch_ijk)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network.eval()(patch)
    return NetworkCost(
        parameters=sum(parameter.numel() for parameter in network.parameters()),
        flops_per_patch=counter.get_total_flops(),
        activation_bytes_per_patch_fp32=kept_bytes(network.train(), patch),
    )


class _WithoutRandomWeights(TorchFunctionMode):
    """Skips the random initialisation of weights, for which torch's meta device loads torch.compile, in 2 s."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func in (torch.Tensor.normal_, torch.Tensor.uniform_):
            return args[0]
        return func(*args, **(kwargs or {}))


def kept_bytes(network: torch.nn.Module, patches: torch.Tensor) -> int:
    """Return the bytes that a forward pass saves for the backward pass; each storage counts once, weights do not."""
    weights = {parameter.untyped_storage() for parameter in network.parameters()}
    kept: set[torch.UntypedStorage] = set()

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.add(tensor.untyped_storage())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        # Kept alive until counted: a freed storage could be allocated again and be counted once for two tensors.
        logits = network(patches)
    total = sum(block.nbytes() for block in kept - weights)
    del logits
    return total
