"""Conversion between the search space of the config schema and that of Ray Tune."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import optuna
from ray import tune
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, TrialScheduler
from ray.tune.search import BasicVariantGenerator, Searcher
from ray.tune.search.optuna import OptunaSearch

from gtvray.config import Choice, Config, Range, SweepConfig

METRIC, MODE, TIME = "selection_dsc", "max", "epoch"


def tune_space(space: Mapping[str, Range | Choice]) -> dict[str, Any]:
    """Return the domains of Ray Tune by dotted key.

    Choices are encoded as JSON text, because lists cannot be categories of Optuna.
    """
    return {key: _domain(entry) for key, entry in space.items()}


def encode(point: Mapping[str, Any], space: Mapping[str, Range | Choice]) -> dict[str, Any]:
    """Return a point of dotted keys as Ray Tune represents it."""
    return {key: json.dumps(value) if isinstance(space[key], Choice) else value for key, value in point.items()}


def decode(point: Mapping[str, Any], space: Mapping[str, Range | Choice]) -> dict[str, Any]:
    """Return the point of dotted keys of a Ray Tune config."""
    return {key: json.loads(point[key]) if isinstance(entry, Choice) else point[key] for key, entry in space.items()}


def build_searcher(sweep: SweepConfig, concurrent: int) -> Searcher | BasicVariantGenerator:
    """Return the searcher of a sweep: Optuna's TPE, or random search.

    Args:
        sweep: search space, seed and start points.
        concurrent: maximum number of concurrent trials; Tune's own limit does not apply to its random search.
    """
    start = [encode(point, sweep.space) for point in sweep.start]
    if sweep.searcher == "random":
        return BasicVariantGenerator(
            points_to_evaluate=start or None, random_state=sweep.seed, max_concurrent=concurrent
        )
    # By default Optuna logs to the terminal.
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return OptunaSearch(points_to_evaluate=start or None, seed=sweep.seed)


def build_scheduler(sweep: SweepConfig, config: Config) -> TrialScheduler:
    """Return the scheduler of a sweep: ASHA, or none."""
    if sweep.scheduler.kind == "none":
        return FIFOScheduler()
    return AsyncHyperBandScheduler(
        time_attr=TIME,
        max_t=config.training.epochs,
        grace_period=min(sweep.scheduler.grace_epochs, config.training.epochs),
        reduction_factor=sweep.scheduler.reduction_factor,
    )


def _domain(entry: Range | Choice) -> Any:
    if isinstance(entry, Choice):
        return tune.choice([json.dumps(value) for value in entry.choice])
    if entry.integer:
        low, high = int(entry.low), int(entry.high) + 1
        return tune.lograndint(low, high) if entry.log else tune.randint(low, high)
    return (tune.loguniform if entry.log else tune.uniform)(entry.low, entry.high)
