"""Ranks and strata of made-up scores."""

from __future__ import annotations

import pytest

from gtvray.errors import InputError
from gtvray.evaluation import rank_models, stratify

from ..scores import made_score


def test_the_mean_of_both_ranks_decides() -> None:
    models = {
        "overlaps best": [made_score("1", 0.9, hd95_mm=30.0), made_score("2", 0.7, hd95_mm=30.0)],
        "close": [made_score("2", 0.6, hd95_mm=5.0), made_score("1", 0.8, hd95_mm=7.0)],
        "worse": [made_score("1", 0.1, hd95_mm=50.0), made_score("2", 0.1, hd95_mm=60.0)],
    }
    ranked = rank_models(models)
    assert [(model.name, model.dsc_rank, model.hd95_rank, model.mean_rank) for model in ranked] == [
        ("overlaps best", 1.0, 2.0, 1.5),
        ("close", 2.0, 1.0, 1.5),
        ("worse", 3.0, 3.0, 3.0),
    ]
    assert ranked[0].mean_dsc == pytest.approx(0.8)
    assert ranked[1].mean_hd95_mm == pytest.approx(6.0)


def test_equal_models_share_their_ranks() -> None:
    scores = [made_score("1", 0.5)]
    assert {model.mean_rank for model in rank_models({"a": scores, "b": scores})} == {1.5}


def test_models_of_other_cases_cannot_be_ranked() -> None:
    with pytest.raises(InputError, match="same cases"):
        rank_models({"a": [made_score("1")], "b": [made_score("2")]})
    with pytest.raises(InputError, match="no scores"):
        rank_models({})


def test_strata_are_thirds_by_volume_and_groups_by_spacing() -> None:
    scores = [
        made_score(
            str(n), n / 10, volume_reference_ml=float(n), spacing_mm=(1.0, 1.0, 3.0 if n < 6 else 5.1), missed=n == 8
        )
        for n in range(1, 10)
    ]
    small, middle, large, fine, coarse = stratify(scores[::-1])
    assert [(s.low, s.high, s.cases, s.unit) for s in (small, middle, large)] == [
        (1.0, 3.0, 3, "ml"),
        (4.0, 6.0, 3, "ml"),
        (7.0, 9.0, 3, "ml"),
    ]
    assert small.mean_dsc == pytest.approx(0.2)
    assert (middle.missed, large.missed) == (0, 1)
    assert [(s.by, s.low, s.high, s.cases) for s in (fine, coarse)] == [
        ("voxel spacing", 3.0, 3.0, 5),
        ("voxel spacing", 5.1, 5.1, 4),
    ]


def test_too_few_cases_have_no_strata() -> None:
    assert stratify([made_score(str(n)) for n in range(5)]) == []
    assert stratify([]) == []
