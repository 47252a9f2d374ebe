"""Self-configuration of a training: decided values, their reasons, and refusals."""

from __future__ import annotations

from math import prod
from typing import Any

import pytest

from gtvray.config import Config, known_keys, load_config
from gtvray.data import Fingerprint
from gtvray.errors import ConfigError
from gtvray.training import Plan, describe_plan, plan_training
from gtvray.training.memory import training_bytes

GB = 10**9
# StructSeg's: 512 x 512 x 124 of 1.14 x 1.14 x 3 mm, the body cut out and prepared at 3 mm.
NASO = Fingerprint("0" * 64, 30, (1.14, 1.14, 3.0), (160, 100, 124), 20.0)


def values(plan: Plan) -> dict[str, Any]:
    return {choice.key: choice.value for choice in plan.choices}


def test_plan_for_a_cpu() -> None:
    plan = plan_training(NASO, 8 * GB, Config())
    assert values(plan) == {
        "preprocessing.spacing_mm": (3.0, 3.0, 3.0),
        "network.size": "small",
        "training.patch_ijk": (48, 48, 48),
        "training.batch_size": 2,
    }
    assert plan.needed_bytes == training_bytes(plan.config) <= 8 * GB


@pytest.mark.slow
def test_plan_for_a_gpu_follows_spacing_and_memory() -> None:
    def planned(gb: int) -> Plan:
        # In fp32, because the precisions of a GPU cannot be queried without one.
        return plan_training(NASO, gb * GB, load_config(overrides=["training.use_gpu=true", "training.precision=fp32"]))

    small, large = planned(8), planned(24)
    for plan in (small, large):
        assert plan.config.preprocessing.spacing_mm == (1.14, 1.14, 3.0)
        assert all(n % 16 == 0 for n in plan.config.training.patch_ijk)
        assert plan.config.network.size == "base"
    voxels = [prod(plan.config.training.patch_ijk) * plan.config.training.batch_size for plan in (small, large)]
    assert voxels[0] < voxels[1]
    # Flat voxels: the patch is a cube in millimetres, or nearly, and not in voxels.
    i, _, k = large.config.training.patch_ijk
    assert i > 1.5 * k


def test_patch_is_limited_to_a_small_body() -> None:
    plan = plan_training(Fingerprint("0" * 64, 30, (3.0, 3.0, 3.0), (120, 90, 20), 20.0), 8 * GB, Config())
    i, j, k = plan.config.training.patch_ijk
    assert k == 32
    assert (i, j) >= (48, 48)


def test_given_values_stay_and_shape_the_rest() -> None:
    given = load_config(overrides=["training.patch_ijk=[32, 32, 16]", "preprocessing.spacing_mm=[4, 4, 4]"])
    plan = plan_training(NASO, 8 * GB, given)
    assert plan.config.training.patch_ijk == (32, 32, 16)
    assert plan.config.preprocessing.spacing_mm == (4.0, 4.0, 4.0)
    whys = {choice.key: choice.why for choice in plan.choices}
    assert whys["training.patch_ijk"] == whys["preprocessing.spacing_mm"] == "given"
    assert whys["network.size"] != "given"
    assert plan.given()["training"] == {"patch_ijk": [32, 32, 16], "batch_size": 2}


def test_unset_values_are_reported_as_defaults() -> None:
    config = load_config(overrides=["training.batch_size=4"])
    plan = plan_training(NASO, 8 * GB, config, given=known_keys())
    assert plan.config == config
    assert {choice.key: choice.why for choice in plan.choices} == {
        "preprocessing.spacing_mm": "the default",
        "network.size": "the default",
        "training.patch_ijk": "the default",
        "training.batch_size": "given",
    }


def test_several_workers_share_the_batch() -> None:
    plan = plan_training(NASO, 8 * GB, load_config(overrides=["training.num_workers=3"]))
    assert plan.config.training.batch_size == 3


def test_written_settings_give_the_planned_config() -> None:
    plan = plan_training(NASO, 8 * GB, load_config(overrides=["optimizer.lr=0.01"]))
    again = Config.model_validate(plan.given())
    assert again == plan.config


def test_a_plan_that_cannot_fit_is_refused_with_a_remedy() -> None:
    huge = load_config(overrides=["training.patch_ijk=[256, 256, 256]", "training.micro_batch=2"])
    with pytest.raises(ConfigError, match="does not fit into memory") as caught:
        plan_training(NASO, 4 * GB, huge)
    assert "GB too much" in caught.value.fields["found"]
    assert "training." in caught.value.fields["do"]
    assert len(str(caught.value).splitlines()) <= 5


def test_plan_text_has_a_line_for_every_value_and_the_network() -> None:
    plan = plan_training(NASO, 8 * GB, Config())
    lines = describe_plan(plan).splitlines()
    for choice, line in zip(plan.choices, lines, strict=False):
        assert line.startswith(f"{choice.key}: ")
        assert choice.why in line
    assert "memory: about" in lines[len(plan.choices)]
    assert "stages" in lines[len(plan.choices) + 1]
