"""Compute that a sweep needs to match random search, replayed on tables of real trainings.

Recording takes hours and resumes where it was interrupted; each finished training is kept. Replays take minutes.

    python benchmarks/sweep_efficiency.py --record main --data openkbp_ptv70/train
    python benchmarks/sweep_efficiency.py --json

Replays are run in two variants: all methods start with the default settings, or all start with the same random row
and the defaults are left out. The second is the headline result, because good defaults leave little to search for.
Random search trains 32 settings to the end; the target is the DSC it reaches, the median over seeds. A method's compute
is the number of epochs it has trained when it first has a trial with that DSC. Settings of gtvray's method are chosen
on one half of the rows and reported on the other half and on the second table. A half has few rows that reach the
target, and whether these are good after one epoch is chance; so the choice is the mean over random samples of the half.
Medians with 95 % bootstrap intervals over seeds.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parent))

from _sweep_replay import RANDOM_TRIALS, Method, Outcome, gtvray_method, plain_asha, random_full
from _sweep_table import PLANS, Row, Table, read_table, record

RESULTS = Path(__file__).parent / "results"
SEEDS = 24
# Samples of the rows on which the method is chosen, and the share of rows and the number of seeds of each.
SAMPLES, SHARE, SAMPLE_SEEDS = 12, 2 / 3, 8
_RESAMPLES = 2000
Start = Callable[[Table, int], Table]
# The first row of its table is the first trial of every search.
STARTS: dict[str, Start] = {"default": lambda table, _: table, "random": Table.without_default}
HEADLINE = "random"
# Searchers and schedulers of which the best on one half of the rows is gtvray's method.
CANDIDATES: dict[str, Method] = {
    f"{searcher} {kind} {grace} {factor}": gtvray_method(
        RANDOM_TRIALS, searcher, kind=kind, grace_epochs=grace, reduction_factor=factor, keep=keep
    )
    for searcher, (kind, grace, factor, keep) in itertools.product(
        ("optuna", "random"),
        [
            *(("asha", grace, factor, 3) for grace in (1, 2) for factor in (3, 4)),
            *(("pasha", grace, 3, 3) for grace in (1, 2)),
            *(("top_k", grace, keep, keep) for grace in (1, 2) for keep in (2, 3)),
        ],
    )
}
# That of tune_configs/default.yaml: the first rung is at a tenth of the epochs.
SHIPPED = CANDIDATES["optuna asha 2 3"]
BASELINES: dict[str, Method] = {
    "stock_asha": plain_asha(RANDOM_TRIALS),
    "one_epoch_topk": gtvray_method(RANDOM_TRIALS, "random", kind="top_k", grace_epochs=1, keep=3),
    "pasha": gtvray_method(RANDOM_TRIALS, "random", kind="pasha", grace_epochs=1, reduction_factor=3),
}


def main() -> None:
    """Record a table, or replay and print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="no effect; the output is always JSON")
    parser.add_argument("--record", choices=PLANS, help="record this table, or what it lacks")
    parser.add_argument("--data", type=Path, help="dataset with masks, for --record")
    parser.add_argument("--tables", type=Path, default=RESULTS, help="folder of the tables")
    parser.add_argument("--seeds", type=int, default=SEEDS, help="number of seeds of each method")
    parser.add_argument("--first-seed", type=int, default=0, help="first of these seeds")
    arguments = parser.parse_args()
    files = {name: arguments.tables / f"sweep_table_{name}.jsonl" for name in PLANS}
    if arguments.record is not None:
        record(PLANS[arguments.record], arguments.data, files[arguments.record])
        return
    tables = {name: table for name, path in files.items() if (table := read_table(path)) is not None}
    # Replays of a table that is still being recorded would not be reproducible.
    incomplete = {name: len(table.rows) for name, table in tables.items() if len(table.rows) < PLANS[name].configs}
    complete = {name: table for name, table in tables.items() if name not in incomplete}
    seeds = range(arguments.first_seed, arguments.first_seed + arguments.seeds)
    print(json.dumps({**report(complete, seeds), "incomplete_rows": incomplete}))


def report(tables: dict[str, Table], seeds: range) -> dict[str, Any]:
    """Choose the method on one half of the main table; report it on the other half and on the second table."""
    base = {
        "benchmark": "sweep_efficiency",
        "compute_vs_random": None,
        "compute_vs_stock_asha": None,
        "compute_vs_one_epoch_topk": None,
        "compute_vs_pasha": None,
        "worse_than_default": None,
        "versions": {name: metadata.version(name) for name in ("gtvray", "ray", "optuna", "numpy")},
    }
    if "main" not in tables:
        return {**base, "missing": "no recorded table: --record main"}
    found = {name: _of_start(tables, seeds, start) for name, start in STARTS.items()}
    half = found[HEADLINE]["tables"]["half"]
    return {
        **base,
        **{key: half[key] for key in base if key in half},
        # From the variant with the default settings, which every real sweep trains.
        "worse_than_default": found["default"]["tables"]["half"]["worse_than_default"],
        "headline": HEADLINE,
        "first_trial": found,
        "rows": {name: len(table.rows) for name, table in tables.items()},
        "seeds": [seeds.start, seeds.stop],
    }


def _of_start(tables: dict[str, Table], seeds: range, start: Start) -> dict[str, Any]:
    """The chosen method and its results where all methods start in the same way."""
    samples = [tables["main"].half(0).sample(number, SHARE) for number in range(SAMPLES)]
    few = range(seeds.start, seeds.start + min(SAMPLE_SEEDS, len(seeds)))
    methods = {**CANDIDATES, "stock_asha": BASELINES["stock_asha"]}
    tried = {
        name: round(float(np.mean([_compute(method, sample, few, start) for sample in samples])), 3)
        for name, method in methods.items()
    }
    chosen = min(CANDIDATES, key=lambda name: tried[name])
    found = {"half": compare(chosen, tables["main"].half(1), seeds, start)}
    if "second" in tables:
        found["second"] = compare(chosen, tables["second"], seeds, start)
    return {"method": chosen, "compute_vs_random_of_candidates": tried, "tables": found}


def _compute(method: Method, table: Table, seeds: range, start: Start) -> float:
    """Epochs of a method to the target, the median over seeds, divided by those of random search."""
    epochs = _epochs([method(start(table, seed), seed) for seed in seeds], _target(table, seeds, start), table)
    return float(np.median(epochs)) / (_random_trials(table) * table.epochs)


def compare(chosen: str, table: Table, seeds: range, start: Start) -> dict[str, Any]:
    """Compute of the chosen method and of the baselines on a table."""
    target = _target(table, seeds, start)
    methods = {"gtvray": CANDIDATES[chosen], "shipped": SHIPPED, **BASELINES}
    started = [start(table, seed) for seed in seeds]
    outcomes = {
        name: [method(each, seed) for each, seed in zip(started, seeds, strict=True)]
        for name, method in methods.items()
    }
    epochs = {name: _epochs(of_method, target, table) for name, of_method in outcomes.items()}
    full = float(_random_trials(table) * table.epochs)
    default = table.rows[0]
    return {
        "target_dsc": target,
        "epochs": {"random": full, **{name: _interval(values) for name, values in epochs.items()}},
        "compute_vs_random": round(float(np.median(epochs["gtvray"])) / full, 3),
        **{
            f"compute_vs_{name}": round(float(np.median(epochs["gtvray"]) / np.median(epochs[name])), 3)
            for name in BASELINES
        },
        "never_reached": {name: int(sum(np.isinf(_raw(of, target)))) for name, of in outcomes.items()},
        "worse_than_default": sum(
            _worse_than_default(default, each.rows[outcome.row], outcome.epoch, seed)
            for each, outcome, seed in zip(started, outcomes["gtvray"], seeds, strict=True)
        ),
    }


def _random_trials(table: Table) -> int:
    # Fewer rows than the trials of a search would make the best row the target.
    return min(RANDOM_TRIALS, round(len(table.rows) * SHARE))


def _target(table: Table, seeds: range, start: Start) -> float:
    """The DSC that random search reaches, the median over seeds."""
    method = random_full(_random_trials(table))
    return float(np.median([method(start(table, seed), seed).best[-1] for seed in seeds]))


def _raw(outcomes: list[Outcome], target: float) -> NDArray[np.float64]:
    return np.array([outcome.epochs_to(target) for outcome in outcomes])


def _epochs(outcomes: list[Outcome], target: float, table: Table) -> NDArray[np.float64]:
    """Epochs to the target; if it is not reached, those of the search and of a random search after it."""
    penalty = [len(outcome.best) + _random_trials(table) * table.epochs for outcome in outcomes]
    raw = _raw(outcomes, target)
    return np.where(np.isinf(raw), penalty, raw)


def _interval(values: NDArray[np.float64]) -> list[float]:
    """Median with its 95 % bootstrap interval."""
    generator = np.random.default_rng(0)
    medians = np.median(generator.choice(values, (_RESAMPLES, len(values))), axis=1)
    return [float(np.median(values)), *(float(bound) for bound in np.percentile(medians, [2.5, 97.5]))]


def _worse_than_default(default: Row, winner: Row, epoch: int, seed: int) -> bool:
    """Whether the winner's epoch is significantly worse than the default settings on the untouched cases."""
    differences = winner.held_out[epoch] - default.held_out[int(np.argmax(default.curve))]
    means = np.random.default_rng(seed).choice(differences, (_RESAMPLES, len(differences))).mean(axis=1)
    return bool(np.percentile(means, 97.5) < 0)


if __name__ == "__main__":
    main()
