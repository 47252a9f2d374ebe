"""Network plans: derived from spacing and patch, explicit values kept, origins reported."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from gtvray.config import NetworkConfig, load_config
from gtvray.errors import ConfigError
from gtvray.models import plan_network
from gtvray.models.planning import ENCODER_BLOCKS, FEATURES

SPACINGS = st.tuples(*[st.sampled_from([0.5, 1.0, 1.5, 2.0, 3.0, 6.0])] * 3)
PATCHES = st.tuples(*[st.integers(8, 130)] * 3)
CUBES_MM = (3.0, 3.0, 3.0)


@settings(max_examples=200)
@given(st.sampled_from(list(FEATURES)), SPACINGS, PATCHES)
def test_plan_pools_only_axes_that_can_be_halved(size: Any, spacing_mm: Any, patch_ijk: Any) -> None:
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
    for stage in plan.stages:
        assert (left % stage.stride == 0).all()
        # An axis at least twice as coarse as the finest is not pooled until the others are as coarse.
        assert all(s == 1 for s, mm in zip(stage.stride, spacing, strict=True) if mm >= 2 * spacing.min())
        spacing, left = spacing * stage.stride, left // stage.stride
        assert stage.kernel == tuple(3 if mm < 2 * spacing.min() else 1 for mm in spacing)
        assert (stage.spacing_mm, stage.size_ijk) == (tuple(spacing), tuple(left))
    assert (left >= np.minimum(patch_ijk, 4)).all()
    assert (np.multiply(left, plan.divisor_ijk) == patch_ijk).all()


@given(SPACINGS, st.sampled_from([16, 32, 64, 128]))
def test_larger_patch_or_size_never_reduces_the_depth(spacing_mm: Any, side: int) -> None:
    depths = []
    for size in FEATURES:
        plans = [plan_network(NetworkConfig(size=size), spacing_mm, (n,) * 3) for n in (side, 2 * side)]
        depths.append([len(plan.features) for plan in plans])
        assert depths[-1][0] <= depths[-1][1]
    assert depths == sorted(depths)
    assert all(list(features) == sorted(features) for features in FEATURES.values())
    assert [len(blocks) for blocks in ENCODER_BLOCKS.values()] == [len(features) for features in FEATURES.values()]


@pytest.mark.parametrize("patch_ijk", [(8, 8, 8), (49, 49, 49), (50, 50, 50), (8, 12, 9)])
def test_patch_that_cannot_be_halved_twice_is_rejected(patch_ijk: tuple[int, int, int]) -> None:
    with pytest.raises(ConfigError, match="patch_ijk"):
        plan_network(NetworkConfig(size="tiny"), CUBES_MM, patch_ijk)


def test_thick_slices_have_two_dimensional_kernels_in_the_first_stage() -> None:
    plan = plan_network(NetworkConfig(), (1.0, 1.0, 3.0), (64, 64, 32))
    assert plan.kernels[:2] == ((3, 3, 1), (3, 3, 3))
    assert plan.strides[:3] == ((1, 1, 1), (2, 2, 1), (2, 2, 2))
    assert plan.stages[0].why == "k is 3 times as coarse as the finest: not convolved"
    assert plan.stages[1].why == ""


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"features": (8, 8, 8)}, {"features": (8, 8, 8), "strides": ((1, 1, 1), (2, 2, 2), (2, 2, 2))}),
        ({"blocks": (1, 2, 3)}, {"features": (16, 32, 48)}),
        ({"kernels": ((1, 3, 5),) * 3}, {"kernels": ((1, 3, 5),) * 3}),
        (
            {"strides": ((1, 1, 1), (2, 1, 1), (1, 2, 1), (2, 2, 2), (2, 2, 2))},
            {"strides": ((1, 1, 1), (2, 1, 1), (1, 2, 1), (2, 2, 2), (2, 2, 2)), "features": (16, 32, 48, 64, 64)},
        ),
    ],
    ids=lambda value: next(iter(value)),
)
def test_explicit_values_are_kept_and_the_others_derived(settings: Any, expected: Any) -> None:
    plan = plan_network(NetworkConfig(size="tiny", **settings), CUBES_MM, (32, 32, 32))
    for name, value in expected.items():
        assert getattr(plan, name) == value
    (key,) = settings
    assert plan.origins[f"network.{key}"] == "set in the config"
    assert list(plan.origins.values()).count("set in the config") == 1


def test_blocks_of_the_encoder_follow_kind_and_size() -> None:
    for kind, expected in (("unet", (1,) * 5), ("residual_encoder_unet", (1, 3, 4, 6, 6))):
        plan = plan_network(NetworkConfig(kind=kind, size="base"), CUBES_MM, (64, 64, 64))
        assert tuple(stage.blocks for stage in plan.stages) == expected


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("network.blocks=[1, 2]", "network.blocks"),
        ("network.blocks=[1, 0, 1]", "network.blocks"),
        ("network.kernels=[[3, 3, 3], [3, 3, 3], [3, 3, 2]]", "network.kernels"),
        ("network.strides=[[1, 1, 1], [2, 2, 2]]", "network.strides"),
        ("network.strides=[[1, 1, 1], [2, 2, 2], [3, 2, 2]]", "network.strides"),
        ("network.strides=[[2, 2, 2], [2, 2, 2], [2, 2, 2]]", "network.strides"),
        ("network.strides=[[1, 1, 1], [1, 1, 1], [2, 2, 2]]", "network.strides"),
    ],
)
def test_invalid_list_is_rejected_by_name(override: str, named: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(overrides=[override])
    assert named in str(caught.value)


def test_lists_of_different_depth_are_rejected_by_name() -> None:
    with pytest.raises(ConfigError, match=r"network\.features has 4, network\.blocks has 3"):
        load_config(overrides=["network.blocks=[1, 1, 1]", "network.features=[8, 8, 8, 8]"])


@pytest.mark.parametrize(("patch_ijk", "what"), [((16, 16, 12), "divide"), ((8, 8, 8), "one voxel")])
def test_strides_that_do_not_fit_the_patch_are_rejected(patch_ijk: Any, what: str) -> None:
    halvings = NetworkConfig(strides=((1, 1, 1), (2, 2, 2), (2, 2, 2), (2, 2, 2)))
    with pytest.raises(ConfigError, match=what) as caught:
        plan_network(halvings, CUBES_MM, patch_ijk)
    assert "network.strides" in str(caught.value)


def test_plan_as_text_and_as_json() -> None:
    plan = plan_network(NetworkConfig(deep_supervision=True, attention="gates"), (1.0, 1.0, 3.0), (32, 32, 16))
    lines = plan.as_text().splitlines()
    assert lines[0] == "unet, 4 stages, attention gates, coarser heads 1"
    assert lines[3].split()[:7] == ["0", "16", "1", "3x3x1", "1x1x1", "32x32x16", "1x1x3"]
    assert len(lines) == 3 + len(plan.stages) + len(plan.origins)
    stored = json.loads(json.dumps(plan.as_dict()))
    assert [stage["features"] for stage in stored["stages"]] == list(plan.features)
    assert stored["divisor_ijk"] == [8, 8, 4]
