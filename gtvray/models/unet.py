"""The U-Net of a `NetworkPlan`: MONAI's DynUNet with more blocks per stage, a light decoder and attention."""

from __future__ import annotations

from math import prod
from typing import Any

import torch

from gtvray.models.monai_parts import ChannelSELayer, Convolution, DynUNet, UnetBasicBlock, get_conv_layer
from gtvray.models.planning import Axes, NetworkPlan

_SQUEEZE = 2


class PlannedUNet(DynUNet):  # type: ignore[misc]  # MONAI has no types
    """A U-Net: (b, channels, i, j, k) to tumour logits (b, 1, i, j, k).

    With heads, training mode returns (b, 1 + heads, 1, i, j, k), the coarser logits upsampled. With one block per
    stage, no attention and no subvoxels it is a DynUNet, weight for weight.

    Args:
        plan: stages and options.
        channels: of the input.
        dropout: share of channels dropped in training.
    """

    def __init__(self, plan: NetworkPlan, channels: int, dropout: float) -> None:
        # Set first: DynUNet's constructor calls the methods below, which read it.
        self.plan = plan
        voxels = prod(plan.subvoxels)
        super().__init__(
            spatial_dims=3,
            in_channels=channels * voxels,
            out_channels=voxels,
            kernel_size=plan.kernels,
            strides=plan.strides,
            upsample_kernel_size=plan.strides[1:],
            filters=plan.features,
            dropout=dropout or None,
            deep_supervision=plan.heads > 0,
            deep_supr_num=max(1, plan.heads),
            res_block=plan.kind != "unet",
        )

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        """Return the logits of patches (b, channels, i, j, k)."""
        logits: torch.Tensor = super().forward(space_to_channels(patches, self.plan.subvoxels))
        return channels_to_space(logits, self.plan.subvoxels)

    def get_input_block(self) -> torch.nn.Module:
        """The first stage; with a light decoder, preceded by a convolution to its number of channels."""
        if not self._light:
            return self._stage(0, self.in_channels)
        width = self.plan.features[0]
        stem = self._convolution(self.in_channels, width, self.plan.kernels[0])
        return torch.nn.Sequential(stem, self._stage(0, width))

    def get_downsamples(self) -> torch.nn.ModuleList:
        """The stages between the first and the last."""
        inner = range(1, len(self.plan.stages) - 1)
        return torch.nn.ModuleList([self._stage(number, self.plan.features[number - 1]) for number in inner])

    def get_bottleneck(self) -> torch.nn.Module:
        """The last stage."""
        return self._stage(len(self.plan.stages) - 1, self.plan.features[-2])

    def get_upsamples(self) -> torch.nn.ModuleList:
        """The decoder, coarsest stage first."""
        return torch.nn.ModuleList([self._up(number) for number in reversed(range(len(self.plan.stages) - 1))])

    @property
    def _light(self) -> bool:
        return self.plan.kind == "residual_encoder_unet"

    @property
    def _layers(self) -> dict[str, Any]:
        return {"norm_name": self.norm_name, "act_name": self.act_name, "dropout": self.dropout}

    def _stage(self, number: int, channels: int) -> torch.nn.Module:
        stage = self.plan.stages[number]
        parts: list[torch.nn.Module] = []
        for block in range(stage.blocks):
            entry = (channels, stage.stride) if block == 0 else (stage.features, (1, 1, 1))
            parts.append(self.conv_block(3, entry[0], stage.features, stage.kernel, entry[1], **self._layers))
        if self.plan.attention == "squeeze_excitation":
            parts.append(ChannelSELayer(3, stage.features, r=min(_SQUEEZE, stage.features)))
        # A single block keeps the names of DynUNet's weights.
        return parts[0] if len(parts) == 1 else torch.nn.Sequential(*parts)

    def _up(self, number: int) -> torch.nn.Module:
        coarse, stage = self.plan.stages[number + 1], self.plan.stages[number]
        upsampling = get_conv_layer(
            3,
            coarse.features,
            stage.features,
            kernel_size=coarse.stride,
            stride=coarse.stride,
            dropout=self.dropout,
            act=None,
            norm=None,
            conv_only=False,
            is_transposed=True,
        )
        joined = 2 * stage.features
        if self._light:
            block = self._convolution(joined, stage.features, coarse.kernel)
        else:
            block = UnetBasicBlock(3, joined, stage.features, coarse.kernel, 1, **self._layers)
        gate = AttentionGate(stage.features) if self.plan.attention == "gates" else None
        return _UpBlock(upsampling, block, gate)

    def _convolution(self, channels: int, features: int, kernel: Axes) -> torch.nn.Module:
        block: torch.nn.Module = Convolution(
            3, channels, features, kernel_size=kernel, act=self.act_name, norm=self.norm_name, bias=False
        )
        return block


def space_to_channels(patches: torch.Tensor, subvoxels: Axes) -> torch.Tensor:
    """Rearrange blocks of voxels into channels: (b, c, i, j, k) to (b, c * voxels of a block, coarser i, j, k).

    The inverse of the shuffle of a sub-pixel convolution (Shi et al., CVPR 2016), in three dimensions.
    """
    if subvoxels == (1, 1, 1):
        return patches
    (b, c, *size), (x, y, z) = patches.shape, subvoxels
    i, j, k = (n // s for n, s in zip(size, subvoxels, strict=True))
    blocks = patches.reshape(b, c, i, x, j, y, k, z).permute(0, 1, 3, 5, 7, 2, 4, 6)
    return blocks.reshape(b, c * x * y * z, i, j, k)


def channels_to_space(logits: torch.Tensor, subvoxels: Axes) -> torch.Tensor:
    """Rearrange channels into blocks of voxels: (..., voxels of a block, i, j, k) to (..., 1, finer i, j, k)."""
    if subvoxels == (1, 1, 1):
        return logits
    (*front, _, i, j, k), (x, y, z) = logits.shape, subvoxels
    n = len(front)
    blocks = logits.reshape(*front, x, y, z, i, j, k)
    order = [*range(n), n + 3, n, n + 4, n + 1, n + 5, n + 2]
    return blocks.permute(order).reshape(*front, 1, i * x, j * y, k * z)


class AttentionGate(torch.nn.Module):
    """An attention gate: weights each voxel of a skip connection by the coarser stage (Oktay et al., MIDL 2018).

    MONAI's gate normalises over the batch, so that the logits of a sample depend on the rest of its batch; this one
    normalises per sample.

    Args:
        features: channels of both inputs.
    """

    def __init__(self, features: int) -> None:
        super().__init__()
        hidden = max(1, features // 2)
        self.of_coarse = self._projection(features, hidden)
        self.of_skip = self._projection(features, hidden)
        self.weight = self._projection(hidden, 1)

    def forward(self, coarse: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        """Return the weighted skip; all tensors are (b, features, i, j, k)."""
        joined = torch.relu(self.of_coarse(coarse) + self.of_skip(skip))
        return skip * torch.sigmoid(self.weight(joined))

    @staticmethod
    def _projection(channels: int, features: int) -> torch.nn.Module:
        layer: torch.nn.Module = Convolution(
            3, channels, features, kernel_size=1, adn_ordering="N", norm=("INSTANCE", {"affine": True})
        )
        return layer


class _UpBlock(torch.nn.Module):
    """Upsample, concatenate the skip, convolve; attributes are named as in MONAI's UnetUpBlock."""

    def __init__(self, upsampling: torch.nn.Module, block: torch.nn.Module, gate: torch.nn.Module | None) -> None:
        super().__init__()
        self.transp_conv, self.conv_block, self.gate = upsampling, block, gate

    def forward(self, coarse: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        up = self.transp_conv(coarse)
        kept = skip if self.gate is None else self.gate(up, skip)
        features: torch.Tensor = self.conv_block(torch.cat((up, kept), dim=1))
        return features
