"""Points of a search space: ranges, choices, conditions, and the check of its corners."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gtvray.config import Choice, Config, Range, with_dotted
from gtvray.errors import ConfigError
from gtvray.tuning.space import Space, check_corners, format_setting

ENTRIES: dict[str, Range | Choice] = {
    "optimizer.lr": Range(low=1e-4, high=1e-2, log=True),
    "training.foreground_share": Range(low=0.2, high=0.8, step=0.25),
    "training.batch_size": Range(low=1, high=3, integer=True),
    "training.steps_per_epoch": Range(low=1, high=100, integer=True, log=True),
    "training.patch_ijk": Choice(choice=[[16, 16, 16], [32, 32, 16]]),
    "network.features": Choice(choice=[None, [4, 8, 8]]),
    "network.kind": Choice(choice=["unet", "residual_unet"]),
    "network.dropout": Range(low=0.0, high=0.5, when={"network.kind": "residual_unet"}),
}


def space(**entries: Range | Choice) -> Space:
    return Space({key.replace("__", "."): entry for key, entry in (entries or ENTRIES).items()}, Config())


def test_every_sample_is_a_valid_config_and_both_ends_are_drawn() -> None:
    generator, drawn, whole = np.random.default_rng(0), [], space()
    for _ in range(300):
        point = whole.at(generator.random(len(ENTRIES)).tolist())
        assert whole.holds(point)
        with_dotted(Config(), point)
        assert ("network.dropout" in point) == (point["network.kind"] == "residual_unet")
        drawn.append(point)
    assert {point["training.batch_size"] for point in drawn} == {1, 2, 3}
    assert {point["training.foreground_share"] for point in drawn} == {0.2, 0.45, 0.7}
    assert {str(point["network.features"]) for point in drawn} == {"None", "[4, 8, 8]"}
    steps = [point["training.steps_per_epoch"] for point in drawn]
    assert (min(steps), max(steps) > 80, {type(step) for step in steps}) == (1, True, {int})
    below = sum(point["optimizer.lr"] < 1e-3 for point in drawn)
    assert 110 < below < 190, "half of a log range lies below its middle"


@pytest.mark.parametrize(
    ("entry", "values"),
    [
        (Range(low=1e-4, high=1e-2, log=True), [1e-4, 1e-3, 1e-2]),
        (Range(low=0, high=1, points=5), [0, 0.25, 0.5, 0.75, 1]),
        (Range(low=1, high=8, integer=True), [1, 5, 8]),
        (Range(low=1, high=2, integer=True, points=4), [1, 2]),
        (Range(low=0.2, high=0.8, step=0.25), [0.2, 0.45, 0.7]),
        (Choice(choice=[[1], None]), [[1], None]),
    ],
)
def test_grid_values_reach_from_end_to_end(entry: Range | Choice, values: list[Any]) -> None:
    assert entry.grid() == (pytest.approx(values) if isinstance(entry, Range) else values)
    assert all(entry.holds(value) for value in entry.grid())
    assert (entry.corners()[0], entry.corners()[-1]) == (entry.grid()[0], entry.grid()[-1])


def test_values_between_the_steps_and_outside_are_not_held_but_have_a_nearest() -> None:
    entry = ENTRIES["training.foreground_share"]
    assert [entry.holds(value) for value in (0.45, 0.5, 0.8, True, "0.45")] == [True, False, False, False, False]
    assert [entry.nearest(value) for value in (0.0, 0.5, 0.9)] == pytest.approx([0.2, 0.45, 0.7])
    assert ENTRIES["training.patch_ijk"].nearest([48, 48, 48]) == [16, 16, 16]
    assert ENTRIES["training.patch_ijk"].nearest([32, 32, 16]) == [32, 32, 16]


def test_grid_of_a_conditional_space_has_no_repeated_point() -> None:
    part = {key: ENTRIES[key] for key in ("network.kind", "network.dropout")}
    assert list(Space(part, Config()).grid()) == [
        {"network.kind": "unet"},
        *({"network.kind": "residual_unet", "network.dropout": value} for value in (0.0, 0.25, 0.5)),
    ]


@pytest.mark.timeout(20)
def test_a_large_grid_is_made_point_by_point() -> None:
    weights = [f"loss.w{number}" for number in range(10)]
    large = Space({key: Range(low=0, high=1) for key in weights}, Config())
    assert sum(1 for _ in large.grid()) == 3**10
    huge = Space({f"loss.w{number}": Range(low=0, high=1) for number in range(40)}, Config())
    assert list(next(huge.grid()).values()) == [0.0] * 40


def test_condition_on_a_setting_that_is_not_searched() -> None:
    entry = {"network.dropout": Range(low=0.0, high=0.5, when={"network.kind": ["residual_unet", "unet"]})}
    assert Space(entry, Config()).default() == {"network.dropout": 0.0}
    other = with_dotted(Config(), {"network.kind": "residual_encoder_unet"})
    assert Space(entry, other).default() == {}


def test_default_point_is_that_of_the_settings_and_completes_others() -> None:
    config = with_dotted(Config(), {"optimizer.lr": 0.5})
    assert Space(ENTRIES, config).default()["optimizer.lr"] == 0.5
    completed = Space(ENTRIES, config).complete({"network.kind": "residual_unet"})
    assert (completed["network.dropout"], completed["optimizer.lr"]) == (0.0, 0.5)
    assert not Space(ENTRIES, config).holds(completed)


def refuse(settings: Config) -> None:
    if settings.training.patch_ijk[0] > 30 and settings.network.kind == "unet":
        raise ConfigError("too large", do="less")


def test_corner_that_cannot_work_is_named_with_its_settings() -> None:
    with pytest.raises(ConfigError, match="too large") as caught:
        check_corners(space(), Config(), refuse)
    where = caught.value.fields["where"]
    assert "training.patch_ijk=[32,32,16]" in where
    assert "network.kind=unet" in where
    assert caught.value.fields["do"].startswith("less; or ")


def test_default_value_that_no_other_trial_uses_gives_way_if_it_cannot_work() -> None:
    patches = space(
        training__patch_ijk=Choice(choice=[[16, 16, 16], [24, 16, 16]]), optimizer__lr=Range(low=0.1, high=1)
    )
    assert check_corners(patches, Config(), refuse) == {"training.patch_ijk": [16, 16, 16], "optimizer.lr": 0.1}
    assert check_corners(patches, Config(), lambda _: None) == patches.default()


def test_corners_of_large_spaces_are_checked_in_pairs() -> None:
    many = {f"network.{name}": Choice(choice=list(range(12))) for name in ("features", "blocks", "kernels")}
    corners = Space(many, Config()).corners()
    assert len(corners) < 12**3
    pairs = {(point["network.features"], point["network.kernels"]) for point in corners}
    assert len(pairs) == 144


def test_settings_are_shown_with_their_digits() -> None:
    assert [format_setting(value) for value in (1.23456e-5, [16, 0.5], None, "unet", 3)] == [
        "1.235e-05",
        "[16,0.5]",
        "None",
        "unet",
        "3",
    ]
