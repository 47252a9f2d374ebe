"""Overhead of a trial beyond its training: gtvray's trials and the nested pattern, in one run.

The nested pattern is that of Ray's examples: a function trainable of Tune starts a TorchTrainer with one worker.
Both run the same `fit` on the same cases, one trial at a time; the overhead of a trial is the elapsed time of the sweep
minus the seconds that its epochs report. Utilisation is that of trials that wait, on more slots than there are cores.
Equal output: the last training loss of every trial is equal bit for bit.

    python benchmarks/sweep_overhead.py --json
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import platform
import sys
import tempfile
import time
import warnings
from importlib import metadata
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from _sweep_slots import measure_slots

from gtvray.config import Config, SweepConfig, load_config
from gtvray.data import CachedCase, CaseCache
from gtvray.datasets import index_dataset, write_phantoms
from gtvray.io import Workspace
from gtvray.runtime import Cluster, connect
from gtvray.tracking import RunRecorder, connect_mlflow

TRIALS = 4
SETTINGS = [
    "preprocessing.spacing_mm=[6, 6, 6]",
    "network.size=tiny",
    "training.patch_ijk=[32, 32, 32]",
    "training.epochs=2",
    "training.steps_per_epoch=10",
    "training.precision=fp32",
]


def main() -> None:
    """Run both and print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="no effect; the output is always JSON")
    parser.add_argument("--slot-trials", type=int, default=200, help="trials of the measurement of utilisation")
    parser.add_argument("--slot-seconds", type=float, default=10.0, help="seconds of each of them")
    parser.add_argument("--slots", type=int, default=16, help="how many of them run at once")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as scratch, connect(cpus=2) as cluster:
        root = Path(scratch)
        write_phantoms(root / "phantoms", 6, 0)
        config = load_config(overrides=SETTINGS)
        dataset = index_dataset(root / "phantoms")
        cases = CaseCache(root / "cache", config.preprocessing, config.cache).prepare_all(dataset.cases)
        multi = load_config(overrides=[*SETTINGS, "training.num_workers=2"])
        runs = {
            "one": ours(config, cases, 1, cluster, root / "one"),
            "many": ours(config, cases, TRIALS, cluster, root / "many"),
            "nested": nested(config, cases, TRIALS, root / "nested"),
            "multi_one": ours(multi, cases, 1, cluster, root / "multi-one"),
            "multi_two": ours(multi, cases, 2, cluster, root / "multi-two"),
        }
    slots = measure_slots(arguments.slot_trials, arguments.slot_seconds, arguments.slots)
    print(json.dumps(report(runs) | {"utilisation": slots["utilisation"], "slots": slots}))


def report(runs: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Results and raw measurements."""
    added = {name: run["wall_s"] - run["busy_s"] for name, run in runs.items()}
    losses = {round(loss, 6) for name in ("many", "nested") for loss in runs[name]["losses"]}
    return {
        "benchmark": "sweep_overhead",
        "cold_s": round(added["one"], 2),
        "warm_s": round((added["many"] - added["one"]) / (TRIALS - 1), 2),
        "nested_s": round(added["nested"] / TRIALS, 2),
        "warm_multi_s": round(added["multi_two"] - added["multi_one"], 2),
        "training_utilisation": round(runs["many"]["busy_s"] / runs["many"]["wall_s"], 3),
        "nested_utilisation": round(runs["nested"]["busy_s"] / runs["nested"]["wall_s"], 3),
        "equal_output": len(losses) == 1,
        "raw": runs,
        "versions": {name: metadata.version(name) for name in ("gtvray", "ray", "torch", "monai", "mlflow")},
        "machine": {"cpus": os.cpu_count(), "python": platform.python_version()},
    }


def ours(config: Config, cases: list[CachedCase], trials: int, cluster: Cluster, folder: Path) -> dict[str, Any]:
    """Run a sweep of equal trials, one at a time."""
    from gtvray.tuning import FoldCases, run_sweep

    place = Workspace(folder)
    client = connect_mlflow(place.mlflow_uri, place.artifacts)
    recorder = RunRecorder(client, "benchmark", "sweep", folder / "spool.jsonl", place.artifacts)
    sweep = SweepConfig.model_validate(
        {
            "trials": trials,
            "max_concurrent": 1,
            "searcher": "random",
            "scheduler": {"kind": "none"},
            # Trials differ in a setting that does not matter here, since no point is tried twice.
            "space": {"training.nan_retries": {"low": 1, "high": 100, "integer": True}},
        }
    )
    began = time.perf_counter()
    folds = [FoldCases(cases[:4], cases[4:])]
    run_sweep(sweep, config, folds, cluster=cluster, recorder=recorder, folder=folder / "sweep", tags={})
    wall_s = time.perf_counter() - began
    recorder.close()
    runs = [run for run in client.search_runs(["1"]) if "ray.trial_id" in run.data.tags]
    seconds = [m.value for run in runs for m in client.get_metric_history(run.info.run_id, "seconds")]
    return {"wall_s": wall_s, "busy_s": sum(seconds), "losses": [run.data.metrics["train_loss"] for run in runs]}


def nested(config: Config, cases: list[CachedCase], trials: int, folder: Path) -> dict[str, Any]:
    """Run the same trainings, each as a TorchTrainer with one worker inside a function trainable."""
    import ray.train
    from ray import tune
    from ray.train.torch import TorchTrainer
    from ray.tune.integration.ray_train import TuneReportCallback

    def worker(loop: dict[str, Any]) -> None:
        from gtvray.training import EPOCH_METRICS, fit

        for report in fit(config, cases[:4], cases[4:], Path(loop["folder"])):
            ray.train.report({name: float(report.as_dict()[name]) for name in EPOCH_METRICS})

    def driver(point: dict[str, Any]) -> None:
        name = tune.get_context().get_trial_id()
        TorchTrainer(
            worker,
            train_loop_config={"folder": str(folder / name / "checkpoints")},
            scaling_config=ray.train.ScalingConfig(num_workers=1, resources_per_worker={"CPU": 1}),
            run_config=ray.train.RunConfig(name=name, storage_path=str(folder), callbacks=[TuneReportCallback()]),
        ).fit()

    seconds: list[float] = []

    class Collect(tune.Callback):
        def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: dict[str, Any], **_: Any) -> None:
            seconds.append(result["seconds"])

    began = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):
        grid = tune.Tuner(
            tune.with_resources(driver, {"CPU": 0.1}),
            param_space={"lr": tune.choice([2e-3])},
            tune_config=tune.TuneConfig(num_samples=trials, max_concurrent_trials=1),
            run_config=tune.RunConfig(name="tune", storage_path=str(folder), verbose=0, callbacks=[Collect()]),
        ).fit()
    wall_s = time.perf_counter() - began
    return {"wall_s": wall_s, "busy_s": sum(seconds), "losses": [result.metrics["train_loss"] for result in grid]}


if __name__ == "__main__":
    sys.exit(main())
