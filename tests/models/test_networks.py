"""Networks: compatibility of weights with MONAI and earlier versions, attention gates and subvoxels."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.networks.nets.dynunet import DynUNet

from gtvray.config import NetworkConfig, build
from gtvray.errors import BundleError, ConfigError
from gtvray.models import build_network, load_weights, plan_network, weights_of
from gtvray.models.unet import AttentionGate, channels_to_space, space_to_channels

GOLDEN = Path(__file__).with_name("golden") / "networks.json"
TINY = NetworkConfig(size="tiny")


def test_plain_and_residual_unets_equal_monais_weight_for_weight() -> None:
    """Bundles and checkpoints of earlier versions store weights in this order and with these names."""
    plan = plan_network(TINY, (1.0, 1.0, 3.0), (32, 32, 16))
    for kind in ("unet", "residual_unet"):
        config = NetworkConfig(kind=kind, size="tiny", deep_supervision=True, dropout=0.1)
        torch.manual_seed(0)
        ours = build_network(config, 2, (1.0, 1.0, 3.0), (32, 32, 16))
        torch.manual_seed(0)
        theirs = DynUNet(
            *(3, 2, 1, plan.kernels, plan.strides, plan.strides[1:], plan.features, 0.1),
            deep_supervision=True,
            res_block=kind == "residual_unet",
        )
        assert list(weights_of(ours)) == list(weights_of(theirs))
        assert all(torch.equal(weight, weights_of(theirs)[name]) for name, weight in weights_of(ours).items())
        patch = torch.rand(1, 2, 32, 32, 16)
        with torch.no_grad():
            assert torch.equal(ours.eval()(patch), theirs.eval()(patch))


@pytest.mark.parametrize(("name", "stored"), json.loads(GOLDEN.read_text()).items())
def test_stored_configs_give_weights_of_unchanged_names_and_shapes(name: str, stored: dict[str, Any]) -> None:
    """Digests of names and shapes, for network settings as stored in bundles."""
    with torch.device("meta"):
        network = build_network(build(NetworkConfig, stored["network"], name), 2, (1.0, 1.0, 3.0), (32, 32, 16))
    shapes = {key: list(weight.shape) for key, weight in weights_of(network).items()}
    assert hashlib.sha256(json.dumps(shapes).encode()).hexdigest() == stored["sha256"]


@pytest.mark.parametrize(
    ("config", "spacing_mm", "patch_ijk"),
    [
        (TINY, (3.0, 3.0, 3.0), (16, 16, 16)),
        (TINY, (1.0, 1.0, 5.0), (32, 32, 8)),
        (NetworkConfig(size="tiny", kind="residual_unet", dropout=0.1), (3.0, 3.0, 3.0), (24, 16, 40)),
        (NetworkConfig(features=(8, 8, 8)), (3.0, 3.0, 3.0), (16, 16, 16)),
        (NetworkConfig(size="tiny", deep_supervision=True), (3.0, 3.0, 3.0), (16, 16, 16)),
        (NetworkConfig(kind="residual_encoder_unet", size="tiny", attention="gates"), (1.0, 1.0, 3.0), (16, 16, 8)),
        (NetworkConfig(features=(8, 8, 8), attention="squeeze_excitation"), (3.0, 3.0, 3.0), (16, 16, 16)),
        (NetworkConfig(features=(1, 1, 1), attention="squeeze_excitation"), (3.0, 3.0, 3.0), (16, 16, 16)),
        (NetworkConfig(features=(1, 1, 1), attention="gates"), (3.0, 3.0, 3.0), (16, 16, 16)),
        (NetworkConfig(features=(8, 8, 8), blocks=(2, 1, 3), mirror_average=True), (3.0, 3.0, 3.0), (16, 16, 16)),
        (NetworkConfig(features=(8, 8, 8), subvoxels=(2, 2, 1), deep_supervision=True), (1.0, 1.0, 3.0), (32, 16, 8)),
    ],
)
def test_explicit_settings_give_one_logit_per_voxel(config: NetworkConfig, spacing_mm: Any, patch_ijk: Any) -> None:
    network = build_network(config, 2, spacing_mm, patch_ijk)
    logits = network(torch.zeros(2, 2, *patch_ijk))
    assert logits.shape == (2, 1, *patch_ijk)
    logits.sum().backward()
    assert [name for name, p in network.named_parameters() if p.grad is None] == []


def test_weights_load_into_an_identical_network_only() -> None:
    one, twin = (build_network(TINY, 1, (3.0, 3.0, 3.0), (16, 16, 16)).eval() for _ in range(2))
    patch = torch.rand(1, 1, 16, 16, 16)
    with torch.no_grad():
        assert not torch.equal(one(patch), twin(patch))
        load_weights(twin, weights_of(one))
        assert torch.equal(one(patch), twin(patch))
    for other in (TINY.model_copy(update={"kind": "residual_unet"}), NetworkConfig(features=(8, 16, 32))):
        with pytest.raises(BundleError, match="do not fit"):
            load_weights(build_network(other, 1, (3.0, 3.0, 3.0), (16, 16, 16)), weights_of(one))
    with pytest.raises(BundleError):
        load_weights(build_network(TINY, 2, (3.0, 3.0, 3.0), (16, 16, 16)), weights_of(one))


def test_attention_gate_normalises_per_sample() -> None:
    """With batch statistics, logits would depend on how workers share a batch."""
    gate = AttentionGate(8)
    coarse, skip = torch.randn(2, 2, 8, 4, 4, 4).unbind()
    together = gate(coarse, skip)
    apart = torch.cat([gate(coarse[n : n + 1], skip[n : n + 1]) for n in range(2)])
    torch.testing.assert_close(together, apart)
    share = together / skip
    assert bool(((share > 0) & (share < 1)).all())
    # One weight per voxel, for all channels.
    torch.testing.assert_close(share, share[:, :1].expand_as(share))
    assert not torch.allclose(gate(coarse.flip(2), skip), together)


@pytest.mark.parametrize("subvoxels", [(1, 1, 1), (2, 2, 2), (2, 3, 1), (1, 1, 4)])
def test_channels_to_space_inverts_space_to_channels(subvoxels: Any) -> None:
    i, j, k = (2 * n for n in subvoxels)
    voxels = torch.arange(2 * i * j * k, dtype=torch.float32).reshape(2, 1, i, j, k)
    coarse = space_to_channels(voxels, subvoxels)
    assert coarse.shape == (2, i * j * k // 8, 2, 2, 2)
    assert torch.equal(channels_to_space(coarse, subvoxels), voxels)
    # A channel holds one voxel of each block, the last axis of the block fastest; input channels are not interleaved.
    x, y, z = subvoxels
    assert torch.equal(coarse[0, 0], voxels[0, 0, ::x, ::y, ::z])
    assert torch.equal(coarse[0, -1], voxels[0, 0, x - 1 :: x, y - 1 :: y, z - 1 :: z])
    both = space_to_channels(torch.cat([voxels, -voxels], dim=1), subvoxels)
    assert torch.equal(both, torch.cat([coarse, -coarse], dim=1))
    heads = torch.stack([coarse, 2 * coarse], dim=1)
    assert torch.equal(channels_to_space(heads, subvoxels), torch.stack([voxels, 2 * voxels], dim=1))


def test_subvoxels_run_the_network_on_the_coarser_grid() -> None:
    config = NetworkConfig(features=(8, 8, 16), subvoxels=(2, 2, 2))
    plan = plan_network(config, (3.0, 3.0, 3.0), (32, 32, 32))
    alone = plan_network(NetworkConfig(features=(8, 8, 16)), (6.0, 6.0, 6.0), (16, 16, 16))
    assert plan.stages == alone.stages
    assert plan.divisor_ijk == (8, 8, 8)
    assert "2x2x2 voxels as channels of one" in plan.as_text()
    network = build_network(config, 1, (3.0, 3.0, 3.0), (32, 32, 32)).eval()
    patch = torch.rand(1, 1, 32, 32, 32)
    with torch.no_grad():
        logits = network(patch)
        assert logits.shape == patch.shape
        # Each voxel of a block is a channel of its own.
        changed = patch.clone()
        changed[0, 0, 17, 16, 16] += 5
        assert not torch.allclose(network(changed), logits)


def test_subvoxels_that_do_not_divide_the_patch_are_rejected() -> None:
    config = NetworkConfig(features=(8, 8, 8), subvoxels=(2, 2, 3))
    with pytest.raises(ConfigError, match="subvoxels do not divide"):
        plan_network(config, (3.0, 3.0, 3.0), (32, 32, 32))
