"""From the schema's search space to Ray Tune's, and back from a trial's point to dotted keys."""

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
    """Ray Tune's domains, by dotted key.

    A dot would nest in Optuna's search and lists cannot be its categories, so choices travel as JSON text.
    """
    return {key: _domain(entry) for key, entry in space.items()}


def encode(point: Mapping[str, Any], space: Mapping[str, Range | Choice]) -> dict[str, Any]:
    """A point of dotted keys as Ray Tune carries it."""
    return {key: json.dumps(value) if isinstance(space[key], Choice) else value for key, value in point.items()}


def decode(point: Mapping[str, Any], space: Mapping[str, Range | Choice]) -> dict[str, Any]:
    """What Ray Tune carries as a point of dotted keys."""
    return {key: json.loads(point[key]) if isinstance(entry, Choice) else point[key] for key, entry in space.items()}


def build_searcher(sweep: SweepConfig, concurrent: int) -> Searcher | BasicVariantGenerator:
    """The searcher of a sweep: Optuna's TPE, or random.

    Args:
        sweep: space, seed and start points.
        concurrent: trials at once; Tune's own limit does not hold for its random search.
    """
    start = [encode(point, sweep.space) for point in sweep.start]
    if sweep.searcher == "random":
        return BasicVariantGenerator(
            points_to_evaluate=start or None, random_state=sweep.seed, max_concurrent=concurrent
        )
    # Its log goes past every setting of ours, to the terminal.
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return OptunaSearch(points_to_evaluate=start or None, seed=sweep.seed)


def build_scheduler(sweep: SweepConfig, config: Config) -> TrialScheduler:
    """The scheduler of a sweep: ASHA, or none."""
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
