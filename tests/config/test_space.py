"""Entries of a search space: sampling, membership and the nearest value."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from gtvray.config import Choice, Range, applies

POSITIONS = st.floats(0, 1, exclude_max=True)
KINDS: list[dict[str, Any]] = [{}, {"log": True}, {"integer": True}, {"step": 0.25}]
RANGES = st.builds(
    lambda low, width, kind: Range(low=low, high=low + width, **kind),
    st.integers(1, 50),
    st.integers(1, 200),
    st.sampled_from(KINDS),
)


@given(RANGES, POSITIONS)
def test_a_sampled_value_is_held_and_is_its_own_nearest(entry: Range, position: float) -> None:
    value = entry.at(position)
    assert entry.holds(value)
    assert entry.nearest(value) == pytest.approx(value)
    assert isinstance(value, int) == entry.integer


@given(RANGES, POSITIONS, POSITIONS)
def test_larger_positions_give_no_smaller_values(entry: Range, one: float, other: float) -> None:
    low, high = sorted((one, other))
    assert entry.at(low) <= entry.at(high) + 1e-9


@given(RANGES, st.floats(-1000, 1000))
def test_the_nearest_value_is_held_and_none_is_nearer(entry: Range, value: float) -> None:
    nearest = entry.nearest(value)
    assert entry.holds(nearest)
    assert all(abs(nearest - value) <= abs(each - value) + 1e-6 for each in [*entry.corners(), *entry.grid()])


@given(RANGES, st.integers(2, 9))
def test_a_grid_has_at_most_its_points_and_both_ends(entry: Range, points: int) -> None:
    grid = entry.model_copy(update={"points": points}).grid()
    assert 2 <= len(grid) <= points
    assert grid == sorted(grid)
    assert (grid[0], grid[-1]) == tuple(entry.corners())


@given(st.lists(st.integers(), min_size=1, max_size=9, unique=True), POSITIONS)
def test_every_choice_has_an_equal_share(values: list[int], position: float) -> None:
    entry = Choice(choice=values)
    assert entry.at(position) == values[min(int(position * len(values)), len(values) - 1)]
    assert entry.grid() == entry.corners() == values


@pytest.mark.parametrize(
    ("when", "settings", "expected"),
    [
        ({}, {}, True),
        ({"a": 1}, {"a": 1}, True),
        ({"a": 1}, {"a": 2}, False),
        ({"a": 1}, {}, False),
        ({"a": [1, 2]}, {"a": 2}, True),
        ({"a": [1, 2], "b": "x"}, {"a": 2, "b": "y"}, False),
        ({"a": None}, {"a": None}, True),
        ({"a": None}, {}, False),
    ],
)
def test_an_entry_applies_if_every_condition_is_met(when: Any, settings: Any, expected: bool) -> None:
    assert applies(Choice(choice=[1], when=when), settings) is expected


def test_the_last_value_below_the_upper_bound_is_the_highest() -> None:
    entry = Range(low=0, high=1, step=0.3)
    assert entry.corners() == pytest.approx([0, 0.9])
    assert entry.at(0.999999) == pytest.approx(0.9)
    assert not entry.holds(1.0)


@pytest.mark.parametrize("points", [0, 1])
def test_a_grid_of_a_range_has_two_points_or_more(points: int) -> None:
    with pytest.raises(ValidationError):
        Range(low=0, high=1, points=points)
