"""Several objectives: cost of a network, Pareto front, and the values that the searcher receives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from gtvray.config import Config, SweepConfig, with_dotted
from gtvray.tracking.trials import COMPLETED, FAILED, STOPPED, Trial
from gtvray.tuning.cost import measure_cost
from gtvray.tuning.pareto import Front, pareto_front
from gtvray.tuning.searchers.optuna import TpeSearcher
from gtvray.tuning.searchers.registry import build_searcher
from gtvray.tuning.space import Space

OBJECTIVES = {"dsc": "max", "latency_ms": "min", "peak_mb": "min"}


def trial(number: int, dsc: float, latency: float, peak: float, state: str = COMPLETED, **point: Any) -> Trial:
    metrics = {"selection_dsc": dsc, "latency_ms": latency, "peak_mb": peak}
    return Trial(f"t{number}", point, {1: metrics}, state=state)


def test_larger_networks_and_patches_cost_more(config: Config) -> None:
    small = measure_cost(config, list(OBJECTIVES))
    assert set(small) == {"latency_ms", "peak_mb"}
    assert small["latency_ms"] > 0
    wide = measure_cost(with_dotted(config, {"network.features": [16, 32, 32]}), ["peak_mb"])
    long = measure_cost(with_dotted(config, {"training.patch_ijk": [32, 32, 32]}), ["peak_mb"])
    assert wide["peak_mb"] > 2 * small["peak_mb"]
    # Eight times the voxels, beside weights that do not change; at least the input and a layer of four channels.
    assert 4 * small["peak_mb"] < long["peak_mb"] < 8.5 * small["peak_mb"]
    assert small["peak_mb"] > 16**3 * 4 * (1 + 4) / 1e6
    assert measure_cost(config, ["dsc"]) == {}
    assert measure_cost(config, ["peak_mb"]) == measure_cost(config, ["peak_mb"])


@pytest.mark.parametrize("precision", ["auto", "fp16"])
def test_latency_of_several_workers_is_measured_without_a_gpu(
    precision: str, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Torch sees the GPUs of the workers in a process that reserves none, and must not use them."""

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a GPU of another process")

    for name in ("current_device", "is_bf16_supported", "mem_get_info", "synchronize", "_lazy_init"):
        monkeypatch.setattr(torch.cuda, name, refuse)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    on_gpus = {"training.use_gpu": True, "training.num_workers": 2, "training.precision": precision}
    assert measure_cost(with_dotted(config, on_gpus), ["latency_ms"])["latency_ms"] > 0


def test_front_has_the_completed_trials_that_none_beats(tmp_path: Path) -> None:
    trials = [
        trial(0, 0.8, 100, 50),
        trial(1, 0.7, 50, 50),
        trial(2, 0.7, 60, 60),
        trial(3, 0.6, 40, 20),
        trial(4, 0.9, 10, 10, state=STOPPED),
        trial(5, 0.9, 10, 10, state=FAILED),
    ]
    front = pareto_front(OBJECTIVES, trials)
    assert front.trials == {"t0": [0.8, 100, 50], "t1": [0.7, 50, 50], "t3": [0.6, 40, 20]}
    assert front.others == {"t2": [0.7, 60, 60]}
    front.save(tmp_path)
    assert Front.load(tmp_path) == front
    assert Front.load(tmp_path / "none") is None


def test_hypervolume_is_the_share_of_the_box_that_is_dominated() -> None:
    two = {"dsc": "max", "latency_ms": "min"}
    # Shares of the way from worst to ideal: (0.8, 0) and (0.5, 0.75); the worst latency is 100.
    assert pareto_front(two, [trial(0, 0.8, 100, 1), trial(1, 0.5, 25, 1)]).hypervolume == pytest.approx(0.375)
    # A third objective: the boxes 0.5 x 0.75 x 0.5 and 0.8 x 0.5 x 0.25 overlap in 0.5 x 0.5 x 0.25.
    three = [trial(0, 0.5, 25, 50), trial(1, 0.8, 50, 75), trial(2, 0.01, 100, 100)]
    expected = 0.5 * 0.75 * 0.5 + 0.8 * 0.5 * 0.25 - 0.5 * 0.5 * 0.25
    assert pareto_front(OBJECTIVES, three).hypervolume == pytest.approx(expected)
    assert pareto_front(OBJECTIVES, []).hypervolume == 0


def test_searcher_has_every_objective_and_prefers_complete_trials() -> None:
    sweep = SweepConfig.model_validate(
        {
            "trials": 30,
            "objectives": OBJECTIVES,
            "space": {"optimizer.lr": {"low": 0.001, "high": 0.1}},
            "base": {"training.epochs": 20},
        }
    )
    config = with_dotted(Config(), sweep.base)
    space = Space(sweep.space, config)
    states = [STOPPED if number % 3 == 0 else COMPLETED for number in range(20)]
    trials = [
        trial(number, number / 20, 10.0, 10.0, state, **{"optimizer.lr": 0.001 + number / 250})
        for number, state in enumerate(states)
    ]
    searcher = TpeSearcher(sweep, space)
    assert searcher.propose(trials) is not None
    recorded = searcher._study.trials[:20]
    assert [each.values for each in recorded] == [[each.epochs[1]["selection_dsc"], 10.0, 10.0] for each in trials]
    assert {each.trial_id for each in trials if each.state == STOPPED} == {
        f"t{number}" for number, each in enumerate(recorded) if max(each.constraints.values()) > 0
    }
    assert build_searcher(sweep, space, space.default()).propose(trials).origin == "informed"  # type: ignore[union-attr]
