"""Clusters: overhead, recovery from faults, and the coefficients from which docs/scale.md extrapolates.

The nodes are raylets of one machine (`ray.cluster_utils.Cluster`), so they share its cores, its disk and its memory
bandwidth, and no network lies between them: the results bound what the driver and Ray cost, and say nothing about the
speed of separate machines.

    python benchmarks/cluster.py --json
    python benchmarks/cluster.py --sections faults mlflow --into benchmarks/results/cluster.json

| section | measures |
| --- | --- |
| predict | scans per second of batch prediction on 1 and 2 nodes |
| trials | driver time per trial on 1 to 8 nodes |
| submit | seconds from a submission to the first checkpoint |
| faults | recovery from a killed worker, a removed node and a killed driver; repeated steps, lost trials and jobs |
| mlflow | epochs per second that MLflow takes, on SQLite and PostgreSQL |
| checkpoint | bytes of a checkpoint, seconds to write and read it |
| cache | bytes of a prepared case, bytes that a step reads |
| serve | start of replicas, CPU time of Serve's controller |
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from _cluster_coefficients import measure_cache, measure_checkpoint, measure_mlflow, measure_serve
from _cluster_faults import measure_faults
from _common import version
from _sweep_slots import measure_slots
from ray.cluster_utils import Cluster as Simulated

from gtvray.batch import ActorPool, PoolPlan, PredictorOpener, Result, Scan, find_files
from gtvray.config import InferenceConfig, NetworkConfig, PreprocessingConfig
from gtvray.datasets import write_phantoms
from gtvray.io import sha256_of
from gtvray.models import Bundle, build_network, weights_of, write_bundle
from gtvray.runtime import Jobs, Needs, connect

# One training step; most of the seconds that it takes are the start of processes.
TRAINING = (
    "preprocessing.spacing_mm=[8, 8, 8]",
    "network.features=[4, 8, 8]",
    "training.patch_ijk=[16, 16, 16]",
    "training.epochs=1",
    "training.steps_per_epoch=1",
    "training.precision=fp32",
)
_LABEL = "one machine: nodes are its processes, with no network between them; other sizes are extrapolations"
_MOST_S = 300.0


def main() -> None:
    """Measure and print one JSON line."""
    sections = {
        "predict": measure_predict,
        "trials": lambda root, given: {str(nodes): overhead(nodes, given.trials) for nodes in given.nodes},
        "submit": lambda root, given: {"first_step_s": submit_to_first_step(root)},
        "faults": lambda root, given: measure_faults(phantoms(root, 10), root),
        "mlflow": lambda root, given: measure_mlflow(root),
        "checkpoint": lambda root, given: measure_checkpoint(root),
        "cache": lambda root, given: measure_cache(phantoms(root, 6), root / "cache"),
        "serve": lambda root, given: measure_serve(),
    }
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="no effect; the output is always JSON")
    parser.add_argument("--sections", nargs="+", choices=sections, default=list(sections), help="what to measure")
    parser.add_argument("--into", type=Path, help="file of earlier sections; those measured now replace theirs")
    parser.add_argument("--scans", type=int, default=24, help="scans of batch prediction")
    parser.add_argument("--trials", type=int, default=40, help="number of trials for each number of nodes")
    parser.add_argument("--nodes", type=int, nargs="+", default=[1, 2, 4, 8], help="numbers of nodes for trials")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    earlier = json.loads(arguments.into.read_text()) if arguments.into and arguments.into.exists() else {}
    raw: dict[str, Any] = earlier.get("raw", {})
    for name in arguments.sections:
        load, began = os.getloadavg()[0], time.perf_counter()
        sys.stderr.write(f"{name}\n")
        with tempfile.TemporaryDirectory() as scratch:
            measured = sections[name](Path(scratch), arguments)
        raw[name] = {
            "found": measured,
            "load_before": round(load, 1),
            "seconds": round(time.perf_counter() - began, 1),
        }
    found = {
        **summary({name: each["found"] for name, each in raw.items()}),
        "label": _LABEL,
        "raw": raw,
        "cpus": len(os.sched_getaffinity(0)),
        "date": time.strftime("%Y-%m"),
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in ("gtvray", "ray", "torch", "mlflow")},
    }
    if arguments.into:
        arguments.into.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found))


def summary(raw: dict[str, Any]) -> dict[str, Any]:
    """The figures of all sections; None for those that were not measured."""
    predicted, trials, faults = (raw.get(name, {}) for name in ("predict", "trials", "faults"))
    first_s = raw["submit"]["first_step_s"] if "submit" in raw else None
    lost_trials = [each["trials"] - each["completed"] for each in trials.values()]
    lost_trials += [each["lost_trials"] for each in faults.values() if "lost_trials" in each]
    lost_jobs = [each["lost_jobs"] for each in faults.values() if "lost_jobs" in each]
    lost_jobs += [int(first_s is None)] if "submit" in raw else []
    return {
        "scans_per_s": {nodes: each["scans_per_s"] for nodes, each in predicted.items()} or None,
        "trial_overhead_s": {nodes: each["overhead_s"] for nodes, each in trials.items()} or None,
        "submit_to_first_step_s": first_s,
        "recovery_s": {fault: each["recovery_s"] for fault, each in faults.items()} or None,
        "lost_steps_ratio": max((each["lost_steps_ratio"] for each in faults.values()), default=None),
        "lost_trials": sum(lost_trials) if lost_trials else None,
        "lost_jobs": sum(lost_jobs) if lost_jobs else None,
        "equal_masks": predicted["1"]["masks"] == predicted["2"]["masks"] if predicted else None,
    }


def phantoms(root: Path, count: int) -> Path:
    """Phantoms in a new folder."""
    write_phantoms(root / "phantoms", count, 0)
    return root / "phantoms"


def measure_predict(root: Path, given: argparse.Namespace) -> dict[str, Any]:
    """Batch prediction on one and two nodes."""
    phantoms(root, given.scans)
    bundle = small_bundle(root / "bundle")
    return {str(nodes): predict(bundle, root, nodes) for nodes in (1, 2)}


def small_bundle(folder: Path) -> Bundle:
    """A model of random weights on a grid of 4 mm."""
    import torch

    torch.manual_seed(0)
    spacing_mm, patch_ijk, network = (4.0, 4.0, 4.0), (32, 32, 32), NetworkConfig(features=(8, 8, 8))
    return write_bundle(
        folder,
        weights=weights_of(build_network(network, 1, spacing_mm, patch_ijk)),
        preprocessing=PreprocessingConfig(spacing_mm=spacing_mm),
        network=network,
        inference=InferenceConfig(),
        patch_ijk=patch_ijk,
        info={},
    )


@contextmanager
def simulated(nodes: int) -> Iterator[str]:
    """Address of a cluster of nodes with one CPU each, and a head without."""
    cluster = Simulated(initialize_head=True, head_node_args={"num_cpus": 0})
    try:
        for _ in range(nodes):
            cluster.add_node(num_cpus=1, object_store_memory=100 << 20)
        cluster.wait_for_nodes()
        yield str(cluster.address)
    finally:
        cluster.shutdown()


def predict(bundle: Bundle, root: Path, nodes: int) -> dict[str, Any]:
    """Predict all phantoms with one process per node; the rate is measured after the first mask, with models loaded."""
    files = find_files([root / "phantoms"], root / f"masks-{nodes}", report=False)
    scans = [Scan(name, path, files.masks[path]) for path, name in files.names.items()]
    opener = PredictorOpener(bundle.folder, bundle.digest, exhaustive=False, uncertainty=False, threads=1)
    ended: list[float] = []
    results: list[Result] = []

    def end(result: Result) -> None:
        ended.append(time.perf_counter())
        results.append(result)

    with simulated(nodes) as address, connect(address):
        began = time.perf_counter()
        pool = ActorPool(opener, PoolPlan(nodes, Needs(1)), wait_s=120, started=lambda scan: None, ended=end)
        pool.run(scans)
    return {
        "scans_per_s": round((len(scans) - 1) / (ended[-1] - ended[0]), 3),
        "first_s": round(ended[0] - began, 2),
        "wall_s": round(ended[-1] - began, 2),
        "failed": sum(result.error is not None for result in results),
        "masks": sorted(sha256_of(mask) for mask in files.masks.values()),
    }


def overhead(nodes: int, trials: int) -> dict[str, Any]:
    """Slot time per trial beyond the second that it sleeps, with one trial at a time on each node.

    It includes the start of one process per node, which dominates with few trials on many nodes of a small machine.
    """
    with simulated(nodes) as address:
        found = measure_slots(trials, 1.0, nodes, address)
    return {**found, "overhead_s": round(found["wall_s"] * nodes / trials - 1.0, 3)}


def submit_to_first_step(root: Path) -> float | None:
    """Seconds from the submission of a training to its first checkpoint, after an epoch of one step."""
    with connect(cpus=2):
        from ray._private.worker import get_dashboard_url

        jobs, workspace = Jobs(f"http://{get_dashboard_url()}"), root / "runs"
        command = ["train", *TRAINING, "--data", str(phantoms(root, 10)), "--workspace", str(workspace)]
        began = time.perf_counter()
        job = jobs.submit(command, installed=False, notify=partial(print, file=sys.stderr))
        while time.perf_counter() - began < _MOST_S and not jobs.state(job).is_over:
            if list(workspace.glob("trainings/*/*/epoch-*")):
                taken = time.perf_counter() - began
                jobs.follow(job, lambda text: None)
                return round(taken, 1)
            time.sleep(0.2)
        sys.stderr.write(jobs.log(job))
        return None


if __name__ == "__main__":
    main()
