"""The registry of networks, and their weights as flat tensors.

To add a network, write its module beside this one, add its name to `network.kind` in the schema and its builder to
`NETWORKS`; `tests/models/test_network_conformance.py` then covers it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from gtvray.config import NetworkConfig
from gtvray.errors import BundleError
from gtvray.models.planning import Axes, Millimetres, plan_network

_LEFT_RIGHT_AXIS = -3


class MirrorAverage(torch.nn.Module):
    """A network's logits averaged with those of the left-right mirror image, mirrored back.

    The logits of a mirrored patch are exactly the mirrored logits, wherever in the head the patch was cut.
    """

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        """Return the averaged logits; axis i runs from one side of the patient to the other."""
        direct: torch.Tensor = self.network(patches)
        mirrored: torch.Tensor = self.network(patches.flip(_LEFT_RIGHT_AXIS)).flip(_LEFT_RIGHT_AXIS)
        return (direct + mirrored) / 2


def _planned_unet(config: NetworkConfig, channels: int, spacing_mm: Millimetres, patch_ijk: Axes) -> torch.nn.Module:
    # Imported here because MONAI takes seconds and up to 250 MB to import, which a process that runs a converted
    # network does not need.
    from gtvray.models.unet import PlannedUNet

    return PlannedUNet(plan_network(config, spacing_mm, patch_ijk), channels, config.dropout)


# From settings, input channels, spacing_mm and patch_ijk to a network, without the wrapper of `mirror_average`.
NetworkBuilder = Callable[[NetworkConfig, int, Millimetres, Axes], torch.nn.Module]

NETWORKS: Mapping[str, NetworkBuilder] = {
    "unet": _planned_unet,
    "residual_unet": _planned_unet,
    "residual_encoder_unet": _planned_unet,
}


def build_network(config: NetworkConfig, channels: int, spacing_mm: Millimetres, patch_ijk: Axes) -> torch.nn.Module:
    """Build a network: (b, channels, i, j, k) to tumour logits (b, 1, i, j, k).

    With deep supervision, training mode returns (b, 1 + heads, 1, i, j, k), finest first, all at the size of the patch.

    Raises:
        ConfigError: as `plan_network`.
    """
    network = NETWORKS[config.kind](config, channels, spacing_mm, patch_ijk)
    return MirrorAverage(network) if config.mirror_average else network


def weights_of(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The network's parameters, each once: the state dict of a DynUNet names most of them twice."""
    return {name: parameter.detach() for name, parameter in network.named_parameters()}


def load_weights(network: torch.nn.Module, weights: Mapping[str, torch.Tensor]) -> None:
    """Copy the tensors of `weights_of` into a network.

    Raises:
        BundleError: names or shapes differ from the network's.
    """
    own = dict(network.named_parameters())
    differing = sorted(set(own) ^ set(weights)) or [n for n, p in own.items() if p.shape != weights[n].shape]
    if differing:
        raise BundleError("weights do not fit the network", found=f"{differing[0]} and {len(differing) - 1} more")
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(weights[name])
