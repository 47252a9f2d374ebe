"""Ranks and paired differences of models on the same cases."""

from __future__ import annotations

import pytest

from gtvray.errors import InputError
from gtvray.evaluation import compare, paired_difference, rank_models

from ..scores import made_score


def test_differences_are_paired_by_case_in_any_order() -> None:
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


def test_models_are_ordered_by_the_mean_of_both_ranks() -> None:
    models = {
        "highest overlap": [made_score("1", 0.9, hd95_mm=30.0), made_score("2", 0.7, hd95_mm=30.0)],
        "closest": [made_score("2", 0.6, hd95_mm=5.0), made_score("1", 0.8, hd95_mm=7.0)],
        "worst": [made_score("1", 0.1, hd95_mm=50.0), made_score("2", 0.1, hd95_mm=60.0)],
    }
    ranked = rank_models(models)
    assert [(model.name, model.dsc_rank, model.hd95_rank, model.mean_rank) for model in ranked] == [
        ("highest overlap", 1.0, 2.0, 1.5),
        ("closest", 2.0, 1.0, 1.5),
        ("worst", 3.0, 3.0, 3.0),
    ]
    assert ranked[0].mean_dsc == pytest.approx(0.8)
    assert ranked[1].mean_hd95_mm == pytest.approx(6.0)


def test_equal_models_share_their_ranks() -> None:
    scores = [made_score("1", 0.5)]
    assert {model.mean_rank for model in rank_models({"a": scores, "b": scores})} == {1.5}


def test_models_scored_on_different_cases_cannot_be_ranked() -> None:
    with pytest.raises(InputError, match="same cases"):
        rank_models({"a": [made_score("1")], "b": [made_score("2")]})
    with pytest.raises(InputError, match="no scores"):
        rank_models({})
