"""Decisions of the gate: acceptance, refusals with their reasons, warnings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from gtvray.config import PromotionConfig
from gtvray.errors import InputError
from gtvray.promotion import Evidence, judge


def test_candidate_that_beats_the_baseline_is_accepted(make_evidence: Callable[..., Evidence]) -> None:
    judgement = judge(make_evidence("d"), PromotionConfig())
    assert (judgement.accepted, judgement.reasons, judgement.warnings) == (True, (), ())
    assert judgement.difference is not None
    assert judgement.difference.low > 0.3


@pytest.mark.parametrize(
    ("evidence", "settings", "reason"),
    [
        ({"candidate": (0.1, 0.2, 0.1)}, {}, "must exceed +0.000"),
        ({"baseline": (0.8, 0.7, 0.75)}, {}, "must exceed +0.000"),
        # A higher mean, but within chance.
        ({"candidate": (0.9, 0.2, 0.12)}, {}, "must exceed +0.000"),
        ({}, {"min_difference_low": 0.7}, "must exceed +0.700"),
        ({"candidate": (0.8, 0.7), "baseline": (0.1, 0.1)}, {}, "2 held-out cases; at least 3 are required"),
        ({}, {"min_cases": 4}, "3 held-out cases; at least 4 are required"),
        ({"loads_fresh": False}, {}, "fresh process"),
    ],
)
def test_each_reason_alone_refuses_the_candidate(
    make_evidence: Callable[..., Evidence], evidence: dict[str, Any], settings: dict[str, Any], reason: str
) -> None:
    judgement = judge(make_evidence("d", **evidence), PromotionConfig(**settings))
    assert not judgement.accepted
    assert len(judgement.reasons) == 1
    assert reason in judgement.reasons[0]


def test_refusal_states_all_reasons(make_evidence: Callable[..., Evidence]) -> None:
    judgement = judge(make_evidence("d", candidate=(0.1, 0.1, 0.1), loads_fresh=False), PromotionConfig())
    assert len(judgement.reasons) == 2


def test_missed_tumours_and_repeated_scoring_are_warned_of(make_evidence: Callable[..., Evidence]) -> None:
    def warnings(**changes: Any) -> tuple[str, ...]:
        return judge(make_evidence("d", **changes), PromotionConfig(min_difference_low=-1)).warnings

    assert warnings(looks=5) == ()
    assert "6 models" in warnings(looks=6)[0]
    assert "1 of 3 tumours missed" in warnings(candidate=(0.8, 0.0, 0.7))[0]


def test_scores_of_different_cases_are_refused(make_evidence: Callable[..., Evidence]) -> None:
    complete = make_evidence("d")
    for baseline in (complete.baseline[:2], complete.baseline[::-1]):
        with pytest.raises(InputError, match="different cases"):
            Evidence("d", "data-1", complete.candidate, baseline, True, 1)
