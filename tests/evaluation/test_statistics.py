"""Intervals against reference values and against their coverage in simulations."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from gtvray.errors import InputError
from gtvray.evaluation import CaseScore, aggregated_dsc, bootstrap_mean_interval, paired_difference, smallest_difference

from ..scores import made_score


def score(dsc: float, reference_ml: float, prediction_ml: float) -> CaseScore:
    return made_score(dsc=dsc, volume_reference_ml=reference_ml, volume_prediction_ml=prediction_ml)


def test_interval_of_many_cases_agrees_with_the_normal_approximation() -> None:
    values = np.random.default_rng(3).normal(0.7, 0.1, size=400)
    interval = bootstrap_mean_interval(values.tolist(), seed=1)
    half = 1.96 * values.std(ddof=1) / 20
    assert interval.mean == pytest.approx(values.mean())
    assert [interval.low, interval.high] == pytest.approx([values.mean() - half, values.mean() + half], abs=0.05 * half)
    assert (interval.n, interval.level) == (400, 0.95)


def test_interval_depends_on_the_seed_alone() -> None:
    values = np.random.default_rng(3).normal(size=30).tolist()
    assert bootstrap_mean_interval(values, seed=1) == bootstrap_mean_interval(values, seed=1)
    assert bootstrap_mean_interval(values, seed=1) != bootstrap_mean_interval(values, seed=2)


def test_interval_of_a_higher_level_is_wider() -> None:
    values = np.random.default_rng(3).normal(size=30).tolist()
    narrow, wide = (bootstrap_mean_interval(values, seed=1, level=level) for level in (0.8, 0.99))
    assert wide.low < narrow.low < narrow.high < wide.high


def test_interval_of_few_cases_is_at_least_students_interval() -> None:
    values = [0.61, 0.74, 0.58, 0.70]
    interval = bootstrap_mean_interval(values, seed=0)
    low, high = stats.t.interval(0.95, 3, loc=np.mean(values), scale=stats.sem(values))
    assert [interval.low, interval.high] == pytest.approx([low, high])


def test_interval_has_its_nominal_coverage() -> None:
    rng = np.random.default_rng(11)
    intervals = [bootstrap_mean_interval(rng.normal(size=5).tolist(), seed=n) for n in range(150)]
    coverage = np.mean([interval.low <= 0 <= interval.high for interval in intervals])
    # The plain percentile bootstrap covers about 83 % at five cases.
    assert coverage > 0.90


@pytest.mark.parametrize("cases", [5, 50])
def test_paired_difference_excludes_the_variation_between_cases(cases: int) -> None:
    rng = np.random.default_rng(5)
    baseline = rng.uniform(0.2, 0.9, size=cases)
    candidate = baseline + 0.05 + rng.normal(0, 0.01, size=cases)
    found = paired_difference(candidate.tolist(), baseline.tolist(), seed=0)
    assert found.n == cases
    assert found.mean == pytest.approx(float(np.mean(candidate - baseline)))
    assert 0.02 < found.low < found.mean < found.high < 0.08


def test_paired_difference_is_the_interval_of_the_differences() -> None:
    candidate, baseline = np.random.default_rng(6).random((2, 25))
    found = paired_difference(candidate.tolist(), baseline.tolist(), seed=4)
    interval = bootstrap_mean_interval((candidate - baseline).tolist(), seed=4)
    assert (found.mean, found.low, found.high) == (interval.mean, interval.low, interval.high)


def test_unusable_scores_are_refused() -> None:
    with pytest.raises(InputError, match="too few cases"):
        paired_difference([0.1, 0.2], [0.1, 0.1], seed=0)
    with pytest.raises(InputError, match="same cases"):
        paired_difference([0.1, 0.2, 0.3], [0.1, 0.1], seed=0)
    with pytest.raises(InputError, match="finite"):
        bootstrap_mean_interval([0.1, float("nan"), 0.3], seed=0)
    with pytest.raises(InputError, match="level"):
        bootstrap_mean_interval([0.1, 0.2, 0.3], seed=0, level=95)


def test_aggregated_dsc_is_dice_of_all_cases_as_one_mask() -> None:
    # Overlaps of 4 and 0 ml: 2 * 4 / (5 + 5 + 1 + 9).
    assert aggregated_dsc([score(0.8, 5, 5), score(0.0, 1, 9)]) == pytest.approx(0.4)
    assert aggregated_dsc([score(1.0, 0, 0)]) == 1.0


def test_smallest_difference_is_detected_with_a_power_of_80_percent() -> None:
    rng = np.random.default_rng(8)
    spread, cases = 0.12, 33
    smallest = smallest_difference((spread * stats.zscore(rng.normal(size=cases), ddof=1)).tolist())
    assert smallest == pytest.approx(2.8 * spread / cases**0.5, rel=0.04)
    detected = [stats.ttest_1samp(rng.normal(smallest, spread, size=cases), 0).pvalue < 0.05 for _ in range(2000)]
    assert np.mean(detected) == pytest.approx(0.8, abs=0.03)
