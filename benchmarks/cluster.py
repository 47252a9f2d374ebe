"""Cluster overhead: scans per second on 1 and 2 nodes, driver time per trial on 1 to 8, submission to first step.

The nodes are raylets of one machine (`ray.cluster_utils.Cluster`), so they share its cores, its disk and its memory
bandwidth, and no network lies between them: the results bound what the driver and Ray cost, and say nothing about the
speed of separate machines. Recovery from faults is measured by the tests in tests/cluster and tests/chaos.

    python benchmarks/cluster.py --json
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
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

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
_LABEL = "nodes are raylets of one machine; no network between them"
_MOST_S = 300.0


def main() -> None:
    """Measure and print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="no effect; the output is always JSON")
    parser.add_argument("--scans", type=int, default=24, help="scans of batch prediction")
    parser.add_argument("--trials", type=int, default=40, help="number of trials for each number of nodes")
    parser.add_argument("--nodes", type=int, nargs="+", default=[1, 2, 4, 8], help="numbers of nodes for trials")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        write_phantoms(root / "phantoms", arguments.scans, 0)
        bundle = small_bundle(root / "bundle")
        predicted = {nodes: predict(bundle, root, nodes) for nodes in (1, 2)}
        trials = {nodes: overhead(nodes, arguments.trials) for nodes in arguments.nodes}
        first_s = submit_to_first_step(root)
    lost = sum(arguments.trials - each["completed"] for each in trials.values())
    found: dict[str, Any] = {
        "scans_per_s": {nodes: each["scans_per_s"] for nodes, each in predicted.items()},
        "trial_overhead_s": {nodes: each["overhead_s"] for nodes, each in trials.items()},
        "submit_to_first_step_s": first_s,
        "recovery_s": None,
        "lost_steps_ratio": None,
        "lost_trials": lost,
        "lost_jobs": int(first_s is None),
        "equal_masks": predicted[1]["masks"] == predicted[2]["masks"],
        "label": _LABEL,
        "raw": {"predicted": predicted, "trials": trials},
        "cpus": len(os.sched_getaffinity(0)),
        "load_before": round(load, 1),
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in ("gtvray", "ray", "torch")},
    }
    print(json.dumps(found))


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
        command = ["train", *TRAINING, "--data", str(root / "phantoms"), "--workspace", str(workspace)]
        began = time.perf_counter()
        job = jobs.submit(command, installed=False)
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
