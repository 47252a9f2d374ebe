"""The best trial against the default settings on cases that the search has not seen."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from gtvray.config import Config, SweepConfig, with_dotted
from gtvray.data import CachedCase
from gtvray.runtime import Cluster
from gtvray.tracking.trials import COMPLETED, STOPPED, Trial
from gtvray.training import fit
from gtvray.tuning.confirm import Confirmation, compare_dsc, held_out_dsc, undecided
from gtvray.tuning.searchers.optuna import importances
from gtvray.tuning.space import Space

DEFAULT = np.random.default_rng(0).uniform(0.3, 0.8, 20)
NOISE = np.random.default_rng(1).normal(0, 0.02, 20)


@pytest.mark.parametrize(
    ("difference", "verdict", "words"),
    [(0.05, "better", "t3 is better"), (-0.05, "worse", "use the bundle of the default"), (0, "not better", "chance")],
)
def test_verdict_follows_from_the_paired_interval(difference: float, verdict: str, words: str, tmp_path: Path) -> None:
    noise = NOISE - NOISE.mean()
    found = compare_dsc("t3", (DEFAULT + noise + difference).tolist(), DEFAULT.tolist())
    assert found.verdict == verdict
    assert words in found.text
    assert "20 held-out cases" in found.text
    assert found.mean == pytest.approx(difference, abs=1e-9)
    found.save(tmp_path)
    assert Confirmation.load(tmp_path) == found


def test_too_few_cases_leave_it_undecided(tmp_path: Path) -> None:
    assert Confirmation.load(tmp_path) is None
    found = undecided("3 held-out cases, at least 10 are needed")
    assert (found.verdict, found.mean) == ("undecided", None)
    found.save(tmp_path)
    assert Confirmation.load(tmp_path) == found


@pytest.mark.ray
@pytest.mark.slow
def test_trials_are_scored_as_they_would_be_exported(
    local_ray: Cluster, config: Config, cases: list[CachedCase], tmp_path: Path
) -> None:
    trials = []
    for name, rate in (("default", 0.002), ("best", 0.02)):
        settings = with_dotted(config, {"optimizer.lr": rate, "training.steps_per_epoch": 8})
        reports = list(fit(settings, cases[:3], cases[3:4], tmp_path / name))
        trials.append((Path(reports[-1].best_checkpoint), settings))
    default, best = held_out_dsc(trials, cases[3:4], cases[4:])
    assert len(default) == len(best) == 2
    assert all(0 <= dsc <= 1 for dsc in [*default, *best])
    assert held_out_dsc(trials[:1], cases[3:4], cases[4:]) == [default]


def test_importances_name_the_setting_that_matters_and_the_trials_they_rest_on() -> None:
    sweep = SweepConfig.model_validate(
        {
            "space": {
                "optimizer.lr": {"low": 1e-4, "high": 1e-1, "log": True},
                "training.foreground_share": {"low": 0.1, "high": 0.9},
            }
        }
    )
    space, generator, trials = Space(sweep.space, Config()), np.random.default_rng(0), []
    for number in range(40):
        point = space.at(generator.random(2).tolist())
        value = 1 - abs(math.log10(point["optimizer.lr"]) + 2) / 3
        state = STOPPED if number % 8 == 0 else COMPLETED
        trials.append(Trial(f"t{number}", point, {1: {"selection_dsc": value}}, state=state))
    found, rests_on = importances(sweep, space, trials)
    assert rests_on == 35
    assert found["optimizer.lr"] > 3 * found["training.foreground_share"]
    assert importances(sweep, space, trials[:9]) == ({}, 7)
