"""Real sweeps: searcher and scheduler of the shipped sweep files against random search with full trainings.

Both search the same space with the same number of trials, two at a time, on the same prepared cases, with a seed each.
The target is the DSC that random search reaches, the median over seeds; compute is the number of epochs that all
trials of a sweep had trained when one of them first had that DSC. Finished sweeps are kept in --work and not repeated.

    python benchmarks/sweep_live.py --json --data openkbp_ptv70/train --work FOLDER
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
import warnings
from importlib import metadata
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from _sweep_table import PLANS

from gtvray.config import Config, SweepConfig, load_config
from gtvray.data import open_project
from gtvray.datasets import index_dataset, write_phantoms
from gtvray.io import Workspace, read_json_lines, write_json
from gtvray.runtime import Cluster, connect
from gtvray.tracking import RunRecorder, connect_mlflow
from gtvray.tuning import FoldCases, run_sweep

TRIALS, EPOCHS, SELECTION_CASES = 12, 10, 12
METHODS: dict[str, dict[str, Any]] = {
    "random_full": {"searcher": "random", "scheduler": {"kind": "none"}},
    "gtvray": {"searcher": "optuna", "scheduler": {"kind": "asha", "grace_epochs": 1, "reduction_factor": 3}},
}


def main() -> None:
    """Run the sweeps that are missing, and print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="no effect; the output is always JSON")
    parser.add_argument("--data", type=Path, help="dataset with masks; phantoms by default")
    parser.add_argument("--work", type=Path, help="folder of caches and finished sweeps; temporary by default")
    parser.add_argument("--seeds", type=int, default=3)
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as scratch:
        print(json.dumps(report(measure(given.data, given.work or Path(scratch), given.seeds))))


def measure(data: Path | None, work: Path, seeds: int) -> dict[str, list[dict[str, Any]]]:
    """Sweeps by method, one per seed."""
    if data is None:
        data = work / "phantoms"
        write_phantoms(data, 24, 0)
    config = load_config(overrides=[*PLANS["second"].settings, f"training.epochs={EPOCHS}"])
    project = open_project(index_dataset(data), config, cache=work / "cache", splits=work / "splits")
    fold = FoldCases(project.train, project.selection[:SELECTION_CASES])
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in METHODS}
    with connect(cpus=2) as cluster:
        for seed in range(seeds):
            for name in METHODS:
                run = _sweep(name, seed, work / f"{name}-{seed}", config=config, fold=fold, cluster=cluster)
                found[name].append(run)
                sys.stderr.write(f"{name}, seed {seed}: {run}\n")
    return found


def report(found: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Epochs to the target by method and seed."""
    target = statistics.median(max(run["best"]) for run in found["random_full"])
    epochs = {
        name: [next((n for n, best in enumerate(run["best"], 1) if best >= target), None) for run in runs]
        for name, runs in found.items()
    }
    return {
        "benchmark": "sweep_live",
        "target_dsc": target,
        "epochs_to_target": epochs,
        "epochs_trained": {name: [len(run["best"]) for run in runs] for name, runs in found.items()},
        "best_dsc": {name: [max(run["best"]) for run in runs] for name, runs in found.items()},
        "seconds": {name: [run["seconds"] for run in runs] for name, runs in found.items()},
        "trials": TRIALS,
        "epochs": EPOCHS,
        "versions": {name: metadata.version(name) for name in ("gtvray", "ray", "torch", "optuna")},
        "cpus": os.cpu_count(),
    }


def _sweep(name: str, seed: int, folder: Path, *, config: Config, fold: FoldCases, cluster: Cluster) -> dict[str, Any]:
    """Best DSC after each trained epoch of all trials, in the order in which they were reported."""
    stored = folder / "best.json"
    if stored.exists():
        return dict(json.loads(stored.read_text()))
    place = Workspace(folder)
    recorder = RunRecorder(
        connect_mlflow(place.mlflow_uri, place.artifacts), "benchmark", name, folder / "queue.jsonl", place.artifacts
    )
    sweep = SweepConfig.model_validate(
        {"trials": TRIALS, "seed": seed, "space": PLANS["second"].space, "max_concurrent": 2, **METHODS[name]}
    )
    began = time.perf_counter()
    run_sweep(sweep, config, [fold], cluster=cluster, recorder=recorder, folder=folder / "sweep", tags={})
    seconds = time.perf_counter() - began
    recorder.close()
    (events,) = (folder / "sweep").glob("trials.jsonl")
    values = [line["metrics"]["selection_dsc"] for line in read_json_lines(events) if line["event"] == "epoch"]
    best = [max(values[: number + 1]) for number in range(len(values))]
    write_json(stored, {"best": best, "seconds": round(seconds, 1)})
    return {"best": best, "seconds": round(seconds, 1)}


if __name__ == "__main__":
    main()
