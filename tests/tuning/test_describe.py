"""Descriptions of a sweep before it runs."""

from __future__ import annotations

import pytest

from gtvray.config import Config, Range, SweepConfig
from gtvray.runtime import Cluster, Node
from gtvray.tuning.describe import _grid, describe_sweep
from gtvray.tuning.space import Space

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


@pytest.mark.parametrize(
    ("cpus", "plan"),
    [
        (7, "3 trials at once, each 2 workers with 1 CPU, 0 GPUs, 1.5 GB of memory, on the cluster"),
        (
            1,
            "a trial does not fit on the cluster: expected 2 x (1 CPUs, 1.5 GB), each on one node; found 1 x (1",
        ),
    ],
)
def test_the_plan_is_that_of_the_cluster(cpus: int, plan: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gtvray.tuning.describe.largest_host_bytes", lambda *_: 1_500_000_000)
    facts = dict(describe_sweep(SWEEP, Config(), cluster=Cluster("", False, (Node(cpus, 0, 16e9),))).facts)
    assert facts["plan"].startswith(plan)


def test_without_a_cluster_the_plan_is_that_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gtvray.tuning.describe.this_machine", lambda gpus: Node(64, 2, 1e12))
    sweep = SWEEP.model_copy(update={"base": {"training.use_gpu": True, "training.gpus_per_worker": 0.5}})
    plan = dict(describe_sweep(sweep, Config()).facts)["plan"]
    assert plan.startswith("4 trials at once, each 1 CPU, 0.5 GPUs, ")
    assert plan.endswith(" GB of memory, on this machine")


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


def test_a_grid_that_the_trials_do_not_cover_is_reported() -> None:
    # Three learning rates, with unet or with one of three dropouts; the default learning rate is not among them.
    grid = SWEEP.model_copy(update={"searcher": "grid", "start": []})
    facts = dict(describe_sweep(grid, Config()).facts)
    assert facts["grid"] == "12 points, not all of which are tried: that takes 13 trials"
    facts = dict(describe_sweep(grid.model_copy(update={"trials": 20}), Config()).facts)
    assert facts["grid"] == "12 points, all tried after 13 trials"
    many = {f"optimizer.lr{number}": Range(low=0, high=1) for number in range(20)}
    assert (
        _grid(grid, Space(many, Config()), {}) == "more than 100000 points, of which 12 trials try only the first ones"
    )


def test_objectives_warm_start_and_a_purely_quasi_random_search_are_reported() -> None:
    facts = dict(describe_sweep(SWEEP, Config()).facts)
    assert (facts["objectives"], facts["searcher"]) == ("dsc (max)", "optuna, seed 0")
    assert "warm start" not in facts
    few = SWEEP.model_copy(update={"trials": 9, "objectives": {"dsc": "max", "peak_mb": "min"}})
    facts = dict(describe_sweep(few, Config()).facts)
    assert facts["objectives"] == "dsc (max), peak_mb (min)"
    assert facts["searcher"].endswith("; with fewer than ten trials all points are quasi-random")
    facts = dict(describe_sweep(few.model_copy(update={"warm_start": ["one", "two"]}), Config()).facts)
    assert (facts["searcher"], facts["warm start"]) == ("optuna, seed 0", "completed trials of one, two")
