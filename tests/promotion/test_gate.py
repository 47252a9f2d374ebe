"""What the gate accepts, refuses, and warns of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from gtvray.config import PromotionConfig
from gtvray.errors import InputError
from gtvray.promotion import Evidence, judge


def test_a_candidate_that_beats_the_baseline_is_accepted(make_evidence: Callable[..., Evidence]) -> None:
    judgement = judge(make_evidence("d"), PromotionConfig())
    assert (judgement.accepted, judgement.reasons, judgement.warnings) == (True, (), ())
    assert judgement.difference is not None
    assert judgement.difference.low > 0.3


@pytest.mark.parametrize(
    ("evidence", "settings", "reason"),
    [
        ({"candidate": (0.1, 0.2, 0.1)}, {}, "must exceed +0.000"),
        ({"baseline": (0.8, 0.7, 0.75)}, {}, "must exceed +0.000"),
        # Better on the mean, and by chance for all one knows.
        ({"candidate": (0.9, 0.2, 0.12)}, {}, "must exceed +0.000"),
        ({}, {"min_difference_low": 0.7}, "must exceed +0.700"),
        ({"candidate": (0.8, 0.7), "baseline": (0.1, 0.1)}, {}, "2 held-out cases; 3 are needed"),
        ({}, {"min_cases": 4}, "3 held-out cases; 4 are needed"),
        ({"loads_fresh": False}, {}, "fresh process"),
    ],
)
def test_each_reason_alone_is_enough_to_refuse(
    make_evidence: Callable[..., Evidence], evidence: dict[str, Any], settings: dict[str, Any], reason: str
) -> None:
    judgement = judge(make_evidence("d", **evidence), PromotionConfig(**settings))
    assert not judgement.accepted
    assert len(judgement.reasons) == 1
    assert reason in judgement.reasons[0]


def test_all_reasons_are_told_at_once(make_evidence: Callable[..., Evidence]) -> None:
    judgement = judge(make_evidence("d", candidate=(0.1, 0.1, 0.1), loads_fresh=False), PromotionConfig())
    assert len(judgement.reasons) == 2


def test_misses_and_many_looks_are_warned_of(make_evidence: Callable[..., Evidence]) -> None:
    def warnings(**changes: Any) -> tuple[str, ...]:
        return judge(make_evidence("d", **changes), PromotionConfig(min_difference_low=-1)).warnings

    assert warnings(looks=5) == ()
    assert "6 models" in warnings(looks=6)[0]
    assert "1 of 3 tumours missed" in warnings(candidate=(0.8, 0.0, 0.7))[0]


def test_scores_of_other_cases_are_no_evidence(make_evidence: Callable[..., Evidence]) -> None:
    whole = make_evidence("d")
    for baseline in (whole.baseline[:2], whole.baseline[::-1]):
        with pytest.raises(InputError, match="other cases"):
            Evidence("d", "data-1", whole.candidate, baseline, True, 1)
