"""Networks and losses: plans follow spacing and patch, answers have the promised shape."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from gtvray.config import LossConfig, NetworkConfig
from gtvray.errors import BundleError, ConfigError
from gtvray.models import build_loss, build_network, load_weights, plan_network, weights_of
from gtvray.models.networks import FEATURES

SPACINGS = st.tuples(*[st.sampled_from([0.5, 1.0, 1.5, 2.0, 3.0, 6.0])] * 3)
PATCHES = st.tuples(*[st.integers(8, 130)] * 3)
TINY = NetworkConfig(size="tiny")


@settings(max_examples=200)
@given(st.sampled_from(list(FEATURES)), SPACINGS, PATCHES)
def test_a_plan_pools_only_what_can_be_pooled(size: Any, spacing_mm: Any, patch_ijk: Any) -> None:
    try:
        plan = plan_network(NetworkConfig(size=size), spacing_mm, patch_ijk)
    except ConfigError as error:
        assert "patch_ijk" in str(error)  # noqa: PT017
        assume(False)
    assert len(plan.features) == len(plan.kernels) == len(plan.strides) >= 3
    assert plan.features == FEATURES[size][: len(plan.features)]
    assert plan.strides[0] == (1, 1, 1)
    assert all(1 in s or 2 in s for s in plan.strides)
    assert all(stride != (1, 1, 1) for stride in plan.strides[1:])
    spacing, left = np.array(spacing_mm), np.array(patch_ijk)
    for stride, kernel in zip(plan.strides, plan.kernels, strict=True):
        assert (left % stride == 0).all()
        # An axis at least twice as coarse as the finest is left alone until the others have caught up.
        assert all(s == 1 for s, mm in zip(stride, spacing, strict=True) if mm >= 2 * spacing.min())
        spacing, left = spacing * stride, left // stride
        assert kernel == tuple(3 if mm < 2 * spacing.min() else 1 for mm in spacing)
    assert (left >= np.minimum(patch_ijk, 4)).all()
    assert (np.multiply(left, plan.divisor_ijk) == patch_ijk).all()


@given(SPACINGS, st.sampled_from([16, 32, 64, 128]))
def test_a_larger_patch_or_size_is_never_a_shallower_network(spacing_mm: Any, side: int) -> None:
    depths = []
    for size in FEATURES:
        plans = [plan_network(NetworkConfig(size=size), spacing_mm, (n,) * 3) for n in (side, 2 * side)]
        depths.append([len(plan.features) for plan in plans])
        assert depths[-1][0] <= depths[-1][1]
    assert depths == sorted(depths)
    assert all(list(features) == sorted(features) for features in FEATURES.values())


@pytest.mark.parametrize("patch_ijk", [(8, 8, 8), (49, 49, 49), (50, 50, 50), (8, 12, 9)])
def test_a_patch_that_cannot_be_halved_twice_is_refused(patch_ijk: tuple[int, int, int]) -> None:
    with pytest.raises(ConfigError, match="patch_ijk"):
        build_network(TINY, 1, (3.0, 3.0, 3.0), patch_ijk)


@pytest.mark.parametrize(
    ("config", "spacing_mm", "patch_ijk"),
    [
        (TINY, (3.0, 3.0, 3.0), (16, 16, 16)),
        (TINY, (1.0, 1.0, 5.0), (32, 32, 8)),
        (NetworkConfig(size="tiny", kind="residual_unet", dropout=0.1), (3.0, 3.0, 3.0), (24, 16, 40)),
        (NetworkConfig(features=(8, 8, 8)), (3.0, 3.0, 3.0), (16, 16, 16)),
        (NetworkConfig(size="tiny", deep_supervision=True), (3.0, 3.0, 3.0), (16, 16, 16)),
    ],
)
def test_one_logit_a_voxel(config: NetworkConfig, spacing_mm: Any, patch_ijk: Any) -> None:
    network = build_network(config, 2, spacing_mm, patch_ijk)
    logits = network(torch.zeros(2, 2, *patch_ijk))
    assert logits.shape == (2, 1, *patch_ijk)
    logits.sum().backward()
    assert [name for name, p in network.named_parameters() if p.grad is None] == []


def test_deep_supervision_answers_by_head_in_training_only() -> None:
    network = build_network(NetworkConfig(size="tiny", deep_supervision=True), 1, (3.0, 3.0, 3.0), (32, 32, 32))
    patches = torch.zeros(2, 1, 32, 32, 32)
    heads = network(patches)
    assert heads.shape[2:] == (1, 32, 32, 32)
    assert heads.shape[:2] == (2, 2)
    assert network.eval()(patches).shape == (2, 1, 32, 32, 32)


def test_weights_go_from_one_network_to_its_twin_and_to_no_other() -> None:
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


@pytest.mark.parametrize("kind", ["dice_ce", "dice_focal", "dice_topk"])
def test_a_loss_is_a_mean_over_samples(kind: Any) -> None:
    """Two workers with one sample each must give what one worker with both gives."""
    loss = build_loss(LossConfig(kind=kind))
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 1, 6, 6, 6, generator=generator)
    masks = (torch.rand(2, 1, 6, 6, 6, generator=generator) > torch.tensor([0.9, 0.2]).view(2, 1, 1, 1, 1)).float()
    apart = [loss(logits[n : n + 1], masks[n : n + 1]) for n in range(2)]
    torch.testing.assert_close(loss(logits, masks), sum(apart) / 2)
    assert apart[0] != apart[1]
    perfect = loss(40 * (masks - 0.5), masks)
    assert 0 <= perfect < 0.01 < apart[0]


def test_the_dice_weight_weighs_the_dice_term() -> None:
    logits, masks = torch.randn(1, 1, 4, 4, 4, generator=torch.Generator().manual_seed(0)), torch.ones(1, 1, 4, 4, 4)
    at = [build_loss(LossConfig(dice_weight=weight))(logits, masks) for weight in (0.0, 1.0, 3.0)]
    torch.testing.assert_close(at[2] - at[0], 3 * (at[1] - at[0]))
    torch.testing.assert_close(at[0], torch.nn.functional.binary_cross_entropy_with_logits(logits, masks))


def test_deeper_heads_count_half_of_the_one_above() -> None:
    loss = build_loss(LossConfig())
    generator = torch.Generator().manual_seed(0)
    heads, masks = torch.randn(2, 3, 1, 4, 4, 4, generator=generator), torch.ones(2, 1, 4, 4, 4)
    single = [loss(heads[:, n], masks) for n in range(3)]
    torch.testing.assert_close(loss(heads, masks), (single[0] + single[1] / 2 + single[2] / 4) / 1.75)
