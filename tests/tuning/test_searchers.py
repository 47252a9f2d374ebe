"""Searchers: what they propose, from the record of earlier trials alone."""

from __future__ import annotations

import itertools
import math
from typing import Any, get_args

import pytest

from gtvray.config import Config, SweepConfig
from gtvray.tracking.trials import COMPLETED, FAILED, RUNNING, STOPPED, Trial
from gtvray.tuning.searchers.optuna import TpeSearcher, start_trials
from gtvray.tuning.searchers.registry import SEARCHERS, build_searcher
from gtvray.tuning.searchers.repeated import by_point
from gtvray.tuning.space import Space

SPACE: dict[str, Any] = {
    "optimizer.lr": {"low": 1e-4, "high": 1e-1, "log": True},
    "training.batch_size": {"low": 1, "high": 8, "integer": True},
    "network.kind": {"choice": ["unet", "residual_unet"]},
    "network.dropout": {"low": 0.0, "high": 0.5, "step": 0.1, "when": {"network.kind": "residual_unet"}},
}
# A proposal of the Gaussian process takes a second.
gp = pytest.param("gp", marks=pytest.mark.slow)
every_searcher = pytest.mark.parametrize("kind", [gp, *(kind for kind in SEARCHERS if kind != "gp")])


def sweep(kind: str = "optuna", **settings: Any) -> SweepConfig:
    return SweepConfig.model_validate({"space": SPACE, "trials": 20, "searcher": kind, **settings})


def score(point: dict[str, Any]) -> float:
    """Best at a rate of 0.01."""
    return 1 - abs(math.log10(point.get("optimizer.lr", 0.01)) + 2) / 3


def ended(number: int, point: dict[str, Any], origin: str, state: str = COMPLETED) -> Trial:
    epochs = {1: {"selection_dsc": score(point) / 2}}
    if state == COMPLETED:
        epochs[2] = {"selection_dsc": score(point)}
    return Trial(f"t{number}", point, {} if state in (RUNNING, FAILED) else epochs, state=state, origin=origin)


def proposals(
    config: SweepConfig, count: int, trials: list[Trial] | None = None, state: str = COMPLETED
) -> list[Trial]:
    """Trials as a searcher proposes them, one after the other, after some that are known."""
    space, found = Space(config.space, Config()), list(trials or [])
    searcher = build_searcher(config, space, space.default())
    while len(found) < count:
        proposal = searcher.propose(found)
        assert proposal is not None
        found.append(ended(len(found), proposal.point, proposal.origin, state))
    return found


def test_every_choice_has_a_searcher() -> None:
    assert set(get_args(SweepConfig.model_fields["searcher"].annotation)) == set(SEARCHERS)


@every_searcher
def test_default_first_then_given_points_then_valid_new_ones(kind: str) -> None:
    start = [{"optimizer.lr": 0.05, "network.kind": "residual_unet"}, {"optimizer.lr": 0.002}]
    found = proposals(sweep(kind, start=start), 12)
    space = Space(sweep().space, Config())
    assert [trial.origin for trial in found[:2]] == ["default", "given"]
    assert found[0].settings == space.default()
    assert found[1].settings["network.dropout"] == 0.0, "what a given point lacks has its default"
    assert all(trial.origin not in ("default", "given") for trial in found[2:]), "the second given point is the default"
    assert all(space.holds(trial.settings) for trial in found)
    assert len({str(trial.settings) for trial in found}) == 12


@every_searcher
def test_proposals_follow_from_seed_and_record_alone(kind: str) -> None:
    found = proposals(sweep(kind), 13)
    assert proposals(sweep(kind), 13) == found
    # A new process that has only the record.
    assert proposals(sweep(kind), 13, tuple(found[:11])) == found
    if kind != "grid":
        assert proposals(sweep(kind, seed=1), 13)[1:] != found[1:]


@pytest.mark.parametrize("kind", ["optuna", gp])
def test_informed_after_a_start_that_is_scaled_to_the_trials(kind: str) -> None:
    origins = [trial.origin for trial in proposals(sweep(kind, trials=12), 8)]
    assert origins == ["default", "start", "start", "start", "informed", "informed", "informed", "informed"]
    few = proposals(sweep(kind, trials=9), 9)
    assert [trial.origin for trial in few] == ["default"] + ["start"] * 8
    assert [start_trials(trials) for trials in (4, 9, 10, 18, 30, 1000)] == [4, 9, 4, 6, 10, 10]


def test_a_resumed_search_is_informed_by_what_was_before() -> None:
    good = tuple(proposals(sweep(trials=40), 30))
    later = [score(trial.settings) for trial in proposals(sweep(trials=40), 40, good)[30:]]
    assert {trial.origin for trial in proposals(sweep(trials=40), 40, good)[30:]} == {"informed"}
    rates = [score(trial.settings) for trial in proposals(sweep("random", trials=40), 40)[1:]]
    assert sum(later) / len(later) > sum(rates) / len(rates) + 0.1


def test_optuna_receives_the_states_of_stopped_and_failed_trials() -> None:
    found = [trial for state in (COMPLETED, STOPPED, FAILED, RUNNING) for trial in proposals(sweep(), 4, state=state)]
    for number, trial in enumerate(found):
        trial.trial_id = f"t{number}"
    searcher = TpeSearcher(sweep(), Space(sweep().space, Config()))
    searcher.propose(found)
    states = [trial.state.name for trial in searcher._study.trials][:16]
    assert states == ["COMPLETE"] * 4 + ["PRUNED"] * 4 + ["FAIL"] * 4 + ["RUNNING"] * 4
    stopped = searcher._study.trials[4]
    assert stopped.intermediate_values == {1: pytest.approx(score(found[4].settings) / 2)}


def test_parallel_proposals_differ_before_any_of_them_has_a_result() -> None:
    config = sweep(trials=60, space={"optimizer.lr": SPACE["optimizer.lr"]})
    known = tuple(proposals(config, 20))
    at_once = proposals(config, 28, known, state=RUNNING)[20:]
    logs = sorted(math.log10(trial.settings["optimizer.lr"]) for trial in at_once)
    assert min(high - low for low, high in itertools.pairwise(logs)) > 1e-4
    assert logs[-1] - logs[0] > 0.2, "pessimistic values for running trials spread the proposals"


def test_default_settings_outside_the_space_are_tried_and_not_learnt_from() -> None:
    config = sweep(space={"optimizer.lr": {"low": 0.01, "high": 0.1}}, trials=30)
    assert proposals(config, 16)[0].settings == {"optimizer.lr": 0.002}


@every_searcher
def test_a_finite_space_ends(kind: str) -> None:
    config = sweep(kind, space={"network.kind": SPACE["network.kind"], "training.batch_size": {"choice": [1, 2]}})
    found = proposals(config, 4)
    space = Space(config.space, Config())
    assert build_searcher(config, space, space.default()).propose(found) is None
    assert len({str(trial.settings) for trial in found}) == 4


def test_quasi_random_points_cover_the_space_evenly() -> None:
    found = proposals(sweep(trials=9, space={"training.foreground_share": {"low": 0, "high": 1}}), 9)[1:]
    values = sorted(trial.settings["training.foreground_share"] for trial in found)
    assert [int(value * 4) for value in values] == [0, 0, 1, 1, 2, 2, 3, 3]


def test_repeats_try_every_point_with_each_seed_and_the_searcher_sees_their_mean() -> None:
    config = sweep("random", repeats=3, trials=9)
    found = proposals(config, 9)
    seeds = [trial.settings["training.seed"] for trial in found]
    assert seeds == [0, 1, 2] * 3
    groups = by_point(found)
    assert [len(group) for group in groups] == [3, 3, 3]
    assert [trial.origin for trial in found] == ["default"] * 3 + ["random"] * 6
    once = proposals(sweep("random", trials=9), 3)
    assert [group[0].settings | {"training.seed": None} for group in groups] == [
        trial.settings | {"training.seed": None} for trial in once
    ]
    assert proposals(config, 9, tuple(found[:4])) == found


def test_an_informed_search_learns_from_means_over_seeds() -> None:
    config = sweep(repeats=2, trials=40, space={"optimizer.lr": SPACE["optimizer.lr"]})
    found = proposals(config, 34)
    for trial, error in zip(found, [0.1, -0.1] * 17, strict=True):
        trial.epochs = {epoch: {"selection_dsc": each["selection_dsc"] + error} for epoch, each in trial.epochs.items()}
    later = proposals(config, 40, tuple(found))[34:]
    assert {trial.origin for trial in later} == {"informed"}
    assert [trial.settings["training.seed"] for trial in later] == [0, 1] * 3
    assert max(score(trial.settings) for trial in later) > 0.8
