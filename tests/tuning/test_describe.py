"""Descriptions of a sweep before it runs."""

from __future__ import annotations

import pytest

from gtvray.config import Config, SweepConfig
from gtvray.tuning.describe import describe_sweep

SWEEP = SweepConfig.model_validate(
    {
        "trials": 12,
        "time_budget_s": 600,
        "plateau": 5,
        "base": {"training.epochs": 18, "training.num_workers": 2},
        "space": {
            "optimizer.lr": {"low": 1e-4, "high": 1e-2, "log": True},
            "network.kind": {"choice": ["unet", "residual_unet"]},
            "network.dropout": {"low": 0, "high": 0.5, "step": 0.1, "when": {"network.kind": "residual_unet"}},
        },
        "start": [{"optimizer.lr": 3e-4}],
    }
)


def test_facts_space_and_first_trials() -> None:
    found = describe_sweep(SWEEP, Config())
    facts = dict(found.facts)
    assert facts["trials"].startswith("12 of at most 18 epochs")
    assert facts["scheduler"] == "asha, rungs at epochs 2, 6"
    assert facts["stops early after"] == "600 s; 5 trials without a better one"
    assert facts["seeds of the trainings"] == "0"
    assert (
        dict(describe_sweep(SWEEP.model_copy(update={"repeats": 3}), Config()).facts)["seeds of the trainings"]
        == "0, 1, 2"
    )
    assert facts["per trial"] == "2 workers, 2 CPUs"
    assert [tuple(row.values()) for row in found.space] == [
        ("optimizer.lr", "0.0001 to 0.01 (log)", "0.002", "-"),
        ("network.kind", "unet | residual_unet", "unet", "-"),
        ("network.dropout", "0 to 0.5 (step 0.1)", "-", "network.kind is residual_unet"),
    ]
    # Of twelve trials the first four are decided; later ones depend on results.
    assert [point["origin"] for point in found.first] == ["default", "given", "start", "start"]
    text = found.text()
    assert "0.0003" in text
    assert "residual_unet" in text


def test_a_grid_is_known_in_advance() -> None:
    grid = SWEEP.model_copy(update={"searcher": "grid", "start": []})
    origins = [point["origin"] for point in describe_sweep(grid, Config()).first]
    assert origins == ["default"] + ["grid"] * 7


def test_median_stopping_has_no_rungs() -> None:
    median = SWEEP.model_validate(SWEEP.model_dump() | {"scheduler": {"kind": "median", "grace_epochs": 3}})
    assert dict(describe_sweep(median, Config()).facts)["scheduler"] == "median, from epoch 3 on"


@pytest.mark.parametrize("searcher", ["grid", "optuna", "random"])
@pytest.mark.parametrize(("choices", "listed"), [([0.002], 3), ([0.002, 0.01, 0.02], 4)])
def test_with_folds_the_default_settings_get_theirs_first(searcher: str, choices: list[float], listed: int) -> None:
    folds = {"folds": 3, "searcher": searcher, "scheduler": {"kind": "none"}, "trials": 10}
    sweep = SweepConfig.model_validate({"space": {"optimizer.lr": {"choice": choices}}, **folds})
    first = describe_sweep(sweep, Config()).first
    assert [point["training.seed"] for point in first] == [0, 1, 2, 0][:listed]
    assert {point["optimizer.lr"] for point in first[:3]} == {0.002}
    assert all(point["optimizer.lr"] != 0.002 for point in first[3:])


def test_every_repeat_of_a_decided_point_is_listed() -> None:
    repeated = SWEEP.model_validate(SWEEP.model_dump() | {"repeats": 2, "start": []})
    seeds = [point["training.seed"] for point in describe_sweep(repeated, Config()).first]
    assert seeds == [0, 1] * 4
