"""Decisions of the gate: acceptance, refusals with their reasons, warnings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest

from gtvray.config import PromotionConfig
from gtvray.errors import InputError
from gtvray.promotion import Cost, Evidence, Gain, Judgement, Request, judge, level_at


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
    for other in (complete.baseline[:2], complete.baseline[::-1]):
        with pytest.raises(InputError, match="baseline were scored on different cases"):
            Evidence("d", "data-1", complete.candidate, other, True, 1)
        with pytest.raises(InputError, match="champion were scored on different cases"):
            replace(complete, champion_digest="c", champion=other)


CHAMPION = tuple(0.5 + 0.01 * (n % 7) for n in range(30))
# A gain of 0.04 with a spread of 0.02.
BETTER = tuple(value + 0.04 + (0.02 if n % 2 else -0.02) for n, value in enumerate(CHAMPION))
WORSE = tuple(value - 0.01 + (0.02 if n % 2 else -0.02) for n, value in enumerate(CHAMPION))


def _over(make_evidence: Callable[..., Evidence], candidate: Sequence[float], **changes: Any) -> Evidence:
    values = {"champion": CHAMPION, "champion_digest": "c", "baseline": (0.1,) * len(CHAMPION), **changes}
    return make_evidence("d", candidate=candidate, **values)


def test_candidate_that_beats_the_champion_is_accepted(make_evidence: Callable[..., Evidence]) -> None:
    judgement = judge(_over(make_evidence, BETTER), PromotionConfig())
    assert (judgement.accepted, judgement.reasons, judgement.rule) == (True, (), "superiority")
    assert judgement.over_champion is not None
    assert judgement.over_champion.mean == pytest.approx(0.04)
    assert judgement.over_champion.level == pytest.approx(0.95)
    assert judgement.signed_rank_p is not None
    assert judgement.signed_rank_p < 0.001
    assert judgement.detectable == pytest.approx(0.0107, abs=1e-3)


@pytest.mark.parametrize(
    "candidate", [CHAMPION, WORSE, [value + 0.001 * (-1) ** n for n, value in enumerate(CHAMPION)]]
)
def test_candidate_that_only_beats_the_baseline_is_refused(
    make_evidence: Callable[..., Evidence], candidate: Sequence[float]
) -> None:
    judgement = judge(_over(make_evidence, candidate), PromotionConfig())
    assert not judgement.accepted
    assert "minus the champion's" in judgement.reasons[0]


def test_each_further_model_on_the_same_cases_needs_more(make_evidence: Callable[..., Evidence]) -> None:
    """A gain that is enough for the first model is chance for the 20th."""
    lucky = [value + (0.045 if n % 3 else -0.06) for n, value in enumerate(CHAMPION)]
    first, late = (judge(_over(make_evidence, lucky, looks=looks), PromotionConfig()) for looks in (1, 20))
    assert first.over_champion is not None
    assert late.over_champion is not None
    assert first.over_champion.low > late.over_champion.low
    assert not late.accepted
    assert "model 20 scored on these cases" in late.reasons[0]
    levels = [1 - level_at(looks, 0.05) for looks in range(1, 2000)]
    assert sum(levels) / 2 == pytest.approx(0.05, abs=1e-4), "the one-sided levels sum to the rate"


def test_baseline_test_without_a_champion_becomes_stricter_with_every_model(
    make_evidence: Callable[..., Evidence],
) -> None:
    lucky = [value + (0.045 if n % 3 else -0.06) for n, value in enumerate(CHAMPION)]
    changes: dict[str, Any] = {"candidate": lucky, "baseline": CHAMPION}
    first, late = (judge(make_evidence("d", looks=looks, **changes), PromotionConfig()) for looks in (1, 20))
    assert first.difference is not None
    assert late.difference is not None
    assert (first.difference.level, late.difference.level) == (pytest.approx(0.95), pytest.approx(level_at(20, 0.05)))
    assert first.difference.low > late.difference.low
    assert not late.accepted
    assert "model 20 scored on these cases" in late.reasons[0]
    champion = judge(_over(make_evidence, BETTER, looks=20), PromotionConfig())
    assert champion.difference is not None
    assert champion.difference.level == 0.95, "with a champion, the comparison with it is the primary test"


def test_named_gain_needs_non_inferiority_and_the_gain(make_evidence: Callable[..., Evidence]) -> None:
    def judged(candidate: Sequence[float], gain: Gain, **changes: Any) -> Judgement:
        return judge(_over(make_evidence, candidate, **changes), PromotionConfig(), Request("Ada", gain))

    slow, fast = Cost(4.0, 900.0, "x86_64, 1 threads"), Cost(1.0, 950.0, "x86_64, 1 threads")
    equal = [value + 0.001 for value in CHAMPION]
    accepted = judged(equal, "latency", cost=fast, champion_cost=slow)
    assert (accepted.accepted, accepted.rule) == (True, "non-inferiority")
    assert judged(equal, "retired-data").accepted
    assert "named gain" in judged(equal, "memory", cost=fast, champion_cost=slow).reasons[0]
    assert "not measured" in judged(equal, "latency").reasons[0]
    lost = judged([value - 0.03 for value in CHAMPION], "retired-data")
    assert "requires a bound above -0.020" in lost.reasons[0]


def test_guards_refuse_a_candidate_of_higher_mean_dsc(make_evidence: Callable[..., Evidence]) -> None:
    better = list(BETTER)
    evidence = _over(make_evidence, better)
    far = replace(evidence, candidate=tuple(replace(score, hd95_mm=9.0) for score in evidence.candidate))
    assert judge(far, PromotionConfig()).reasons == (
        "mean HD95 at most 3 mm above the champion's: +4.0 mm (+4.0 to +4.0)",
    )
    lost = judge(_over(make_evidence, [0.05, *[value + 0.1 for value in better[1:]]]), PromotionConfig())
    assert lost.reasons == ("no case below DSC 0.1 that the champion passes: 0 0.500 to 0.050",)
    missed = judge(_over(make_evidence, [0.0, *[value + 0.1 for value in better[1:]]]), PromotionConfig())
    assert any("no more missed tumours than the champion: 1, the champion 0" in reason for reason in missed.reasons)


def test_budgets_are_checked_or_stated_as_not_measured(make_evidence: Callable[..., Evidence]) -> None:
    config = PromotionConfig(max_seconds=2.0, max_peak_mb=1000.0)
    unmeasured = judge(_over(make_evidence, BETTER), config)
    assert unmeasured.accepted
    assert [guard.passed for guard in unmeasured.guards][-2:] == [None, None]
    judgement = judge(_over(make_evidence, BETTER, cost=Cost(3.0, 800.0, "x86_64, 1 threads")), config)
    assert judgement.reasons == ("time at most 2 s: 3 s on x86_64, 1 threads",)


def test_override_needs_a_reason_and_an_intact_bundle(make_evidence: Callable[..., Evidence]) -> None:
    request = Request("Ada", override="needed for a study")
    judgement = judge(_over(make_evidence, WORSE), PromotionConfig(), request)
    assert (judgement.accepted, judgement.overridden) == (True, True)
    assert judgement.reasons
    for broken in ({"loads_fresh": False}, {"golden": False}):
        assert not judge(_over(make_evidence, WORSE, **broken), PromotionConfig(), request).accepted
    assert not judge(_over(make_evidence, BETTER), PromotionConfig(), request).overridden, "nothing to override"
