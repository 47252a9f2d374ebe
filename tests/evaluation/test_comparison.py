"""Pairs of models on the same cases."""

from __future__ import annotations

import pytest

from gtvray.evaluation import compare, paired_difference

from ..scores import made_score


def test_pairs_are_taken_case_by_case_whatever_their_order() -> None:
    first, second = [0.9, 0.7, 0.8, 0.6], [0.5, 0.6, 0.7, 0.6]
    a = [made_score(str(n), dsc, hd95_mm=4.0) for n, dsc in enumerate(first)]
    b = [made_score(str(n), dsc) for n, dsc in enumerate(second)][::-1]
    comparison = compare({"a": a, "b": b})
    pair, distance = comparison.differences
    paired = paired_difference(first, second, seed=0)
    assert (pair.model, pair.other, pair.mean) == ("a", "b", pytest.approx(0.15))
    assert (pair.low, pair.high) == (paired.low, paired.high)
    assert pair.smallest > 0
    assert (pair.metric, distance.metric) == ("dsc", "hd95_mm")
    assert (distance.mean, distance.low, distance.high, distance.smallest) == (-1.0, -1.0, -1.0, 0.0)
    assert [ranked.name for ranked in comparison.ranking] == ["a", "b"]


def test_two_cases_are_ranked_without_differences() -> None:
    few = [made_score("1", 0.9), made_score("2", 0.5)]
    assert compare({"a": few, "b": few}).differences == ()
    assert compare({"a": few}).as_dict()["differences"] == ()
