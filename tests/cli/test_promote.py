"""`gtvray promote`: what it prints before anything is scored."""

from __future__ import annotations

import pytest

from gtvray.api import PromotionPlan
from gtvray.cli.promote import _describe
from gtvray.config import PromotionConfig
from gtvray.promotion import expected_detectable


@pytest.mark.parametrize(("champion", "reference"), [(None, "the baseline"), ("3", "version 3")])
def test_plan_states_the_level_and_the_smallest_detectable_gain(champion: str | None, reference: str) -> None:
    text = _describe(PromotionPlan(champion, cases=33, min_cases=3, looks=2, level=0.98333, detectable=0.0789))
    assert "33 held-out cases (at least 3 are required); 2 models scored on them" in text
    assert f"better than {reference} at a confidence level of 98.33 %" in text
    assert "detect a gain of 0.079 DSC over it" in text
    assert ("no champion yet" in text) == (champion is None)


def test_gain_over_the_baseline_needs_more_cases_to_be_detected() -> None:
    over_champion, over_baseline = (
        expected_detectable(33, 1, PromotionConfig(), champion=champion) for champion in (True, False)
    )
    assert over_champion < 0.05 < over_baseline < 0.1
