"""Conformance of networks: what every choice of `network.kind` and `network.attention` must satisfy."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from gtvray.config import InferenceConfig, NetworkConfig, PreprocessingConfig
from gtvray.errors import ConfigError
from gtvray.models import Bundle, build_network, network_cost, weights_of, write_bundle
from gtvray.models.cost import kept_bytes
from gtvray.models.networks import NETWORKS

KINDS = get_args(NetworkConfig.model_fields["kind"].annotation)
ATTENTIONS = get_args(NetworkConfig.model_fields["attention"].annotation)
ISOTROPIC_MM, ANISOTROPIC_MM = (3.0, 3.0, 3.0), (1.0, 1.0, 3.0)

every_kind = pytest.mark.parametrize("kind", KINDS)
every_network = pytest.mark.parametrize(
    "choice", [{"kind": kind, "attention": attention} for kind, attention in product(KINDS, ATTENTIONS)], ids=str
)


def _config(choice: dict[str, Any], **settings: Any) -> NetworkConfig:
    return NetworkConfig(**{"features": (4, 8, 8), **choice, **settings})


def _built(config: NetworkConfig, seed: int = 0, channels: int = 1) -> torch.nn.Module:
    torch.manual_seed(seed)
    return build_network(config, channels, ISOTROPIC_MM, (16, 16, 16))


def test_every_choice_of_the_schema_has_a_builder() -> None:
    assert set(NETWORKS) == set(KINDS)


@pytest.mark.parametrize(
    ("spacing_mm", "patch_ijk"),
    [(ISOTROPIC_MM, (16, 16, 16)), (ANISOTROPIC_MM, (16, 16, 8)), ((1.0, 1.0, 5.0), (32, 32, 8))],
    ids=str,
)
@every_network
def test_output_is_one_finite_logit_per_voxel(choice: Any, spacing_mm: Any, patch_ijk: Any) -> None:
    network = build_network(_config(choice), 2, spacing_mm, patch_ijk)
    logits = network(torch.rand(2, 2, *patch_ijk))
    assert logits.shape == (2, 1, *patch_ijk)
    assert logits.dtype == torch.float32
    assert bool(logits.isfinite().all())


def _without_gradient(config: NetworkConfig) -> list[str]:
    network = build_network(config, 1, ISOTROPIC_MM, (32, 32, 16))
    network(torch.rand(2, 1, 32, 32, 16)).square().sum().backward()
    return [name for name, p in network.named_parameters() if p.grad is None or not bool(p.grad.isfinite().all())]


@every_network
def test_gradient_reaches_every_parameter(choice: Any) -> None:
    assert _without_gradient(_config(choice)) == []


@pytest.mark.parametrize(
    "settings",
    [{"deep_supervision": True}, {"mirror_average": True}, {"subvoxels": (2, 2, 1)}, {"features": (1, 1, 1)}],
    ids=str,
)
@every_kind
def test_gradient_reaches_every_parameter_with_each_option(kind: Any, settings: Any) -> None:
    assert _without_gradient(_config({"kind": kind}, **settings)) == []


@every_network
def test_weights_and_output_follow_the_seed(choice: Any) -> None:
    config, patch = _config(choice), torch.rand(1, 1, 16, 16, 16)
    one, same, other = (_built(config, seed).eval() for seed in (0, 0, 1))
    assert list(weights_of(one)) == list(weights_of(other))
    assert all(torch.equal(weight, weights_of(same)[name]) for name, weight in weights_of(one).items())
    with torch.no_grad():
        assert torch.equal(one(patch), same(patch))
        assert not torch.equal(one(patch), other(patch))


@every_network
def test_logits_of_a_sample_do_not_depend_on_its_batch(choice: Any) -> None:
    network = _built(_config(choice))
    patches = torch.rand(2, 1, 16, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(network(patches)[:1], network(patches[:1]), rtol=1e-4, atol=1e-5)
    assert list(network.buffers()) == [], "weights_of stores parameters only"


@every_kind
def test_deep_supervision_adds_heads_in_training_only(kind: Any) -> None:
    config = NetworkConfig(kind=kind, features=(4, 8, 8, 8), deep_supervision=True)
    network = build_network(config, 1, ISOTROPIC_MM, (32, 32, 32))
    patches = torch.zeros(2, 1, 32, 32, 32)
    heads = network(patches)
    assert heads.shape[2:] == (1, 32, 32, 32)
    assert heads.shape[:2] == (2, 2)
    assert network.eval()(patches).shape == (2, 1, 32, 32, 32)


@every_kind
def test_dropout_acts_in_training_only(kind: Any) -> None:
    network, patch = _built(_config({"kind": kind}, dropout=0.5)), torch.rand(1, 1, 16, 16, 16)
    with torch.no_grad():
        assert not torch.equal(network(patch), network(patch))
        network.eval()
        assert torch.equal(network(patch), network(patch))


@pytest.mark.parametrize("attention", [each for each in ATTENTIONS if each != "none"])
@every_kind
def test_attention_weighs_what_the_plain_network_passes_on(kind: Any, attention: str) -> None:
    """It adds weights, and the others alone give another output than with them."""
    plain, weighed = _built(_config({"kind": kind})), _built(_config({"kind": kind, "attention": attention}))
    added = weights_of(weighed).keys() - weights_of(plain).keys()
    assert added
    patch = torch.rand(1, 1, 16, 16, 16)
    with torch.no_grad():
        before = weighed.eval()(patch)
        for name, weight in weighed.named_parameters():
            if name in added:
                weight.zero_()
        assert not torch.equal(weighed(patch), before)


@pytest.mark.parametrize("deep_supervision", [False, True])
@every_kind
def test_mirror_average_makes_logits_symmetric(kind: Any, deep_supervision: bool) -> None:
    config = NetworkConfig(kind=kind, features=(4, 8, 8, 8), deep_supervision=deep_supervision, mirror_average=True)
    network = build_network(config, 1, ISOTROPIC_MM, (32, 32, 32))
    patch = torch.rand(1, 1, 32, 32, 32)
    with torch.no_grad():
        direct, mirrored = network(patch), network(patch.flip(2)).flip(-3)
        single = network.network(patch)
    assert torch.equal(direct, mirrored)
    assert not torch.allclose(direct, single)


@pytest.mark.parametrize(
    "patch_ijk", [(15, 16, 16), (17, 16, 16), (8, 8, 8), (49, 49, 49), (8, 12, 9), (1, 1, 1)], ids=str
)
@every_kind
def test_patch_size_that_does_not_fit_is_rejected_by_name(kind: Any, patch_ijk: Any) -> None:
    strides = ((1, 1, 1), (2, 2, 2), (2, 2, 2), (2, 2, 2)) if patch_ijk[0] == 15 else None
    config = NetworkConfig(kind=kind, size="tiny", strides=strides)
    with pytest.raises(ConfigError, match=r"training\.patch_ijk"):
        build_network(config, 1, ISOTROPIC_MM, patch_ijk)


@pytest.mark.parametrize("patch_ijk", [(18, 12, 20), (24, 16, 40)], ids=str)
@every_kind
def test_patch_size_that_fits_is_kept(kind: Any, patch_ijk: Any) -> None:
    network = build_network(NetworkConfig(kind=kind, features=(4, 8, 8)), 1, ISOTROPIC_MM, patch_ijk)
    assert network(torch.zeros(1, 1, *patch_ijk)).shape == (1, 1, *patch_ijk)


@every_network
def test_bundle_restores_weights_and_logits_exactly(choice: Any, tmp_path: Path) -> None:
    config = _config(choice)
    network = _built(config).eval()
    write_bundle(
        tmp_path / "bundle",
        weights=weights_of(network),
        preprocessing=PreprocessingConfig(spacing_mm=ISOTROPIC_MM),
        network=config,
        inference=InferenceConfig(),
        patch_ijk=(16, 16, 16),
        info={},
    )
    restored = Bundle.load(tmp_path / "bundle").build_network()
    assert not restored.training
    patch = torch.rand(1, 1, 16, 16, 16)
    with torch.no_grad():
        assert torch.equal(restored(patch), network(patch))


@every_network
def test_cost_estimate_equals_what_torch_counts(choice: Any) -> None:
    config, patch = _config(choice), torch.rand(1, 1, 16, 16, 16)
    cost, network = network_cost(config, 1, ISOTROPIC_MM, (16, 16, 16)), _built(config)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network.eval()(patch)
    assert cost.parameters == sum(parameter.numel() for parameter in network.parameters())
    assert cost.flops_per_patch == counter.get_total_flops()
    assert cost.activation_bytes_per_patch_fp32 == kept_bytes(network.train(), patch)


@every_network
def test_bf16_autocast_gives_finite_logits_and_gradients(choice: Any) -> None:
    network, patches = _built(_config(choice)), torch.rand(2, 1, 16, 16, 16)
    with torch.autocast("cpu", torch.bfloat16):
        logits = network(patches)
    with torch.no_grad():
        torch.testing.assert_close(logits.float().sigmoid(), network(patches).sigmoid(), rtol=0, atol=0.1)
    logits.float().square().mean().backward()
    assert all(bool(p.grad.isfinite().all()) for p in network.parameters() if p.grad is not None)
