"""Faults of a training on a cluster: seconds until it trains again, and steps that it repeats.

Every optimizer step of rank 0 is counted in the process that runs it, with its time. A fault is injected at a named
location (`gtvray.failpoints`) and its time is that of the file which the failpoint leaves. The interrupted step counts
as lost. Checkpoints are written after every epoch, so the checkpoint interval is an epoch.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

from ray.cluster_utils import Cluster as Simulated

from gtvray.config import Config, load_config
from gtvray.data import CachedCase, CaseCache
from gtvray.datasets import index_dataset
from gtvray.failpoints import ONCE_VARIABLE, VARIABLE
from gtvray.io import read_json_lines
from gtvray.runtime import Jobs, connect
from gtvray.training import fit_distributed

STEPS, EPOCHS = 20, 4
SETTINGS = {
    "preprocessing.spacing_mm": [8, 8, 8],
    "network.features": [4, 8, 8],
    "training.patch_ijk": [16, 16, 16],
    "training.steps_per_epoch": STEPS,
    "training.epochs": EPOCHS,
    "training.precision": "fp32",
    "inference.overlap": 0,
}
_SWEEP = "trials: 2\nmax_concurrent: 1\nsearcher: random\nscheduler: {kind: none}\n"
_SPACE = "space:\n  optimizer.lr: {low: 1.0e-3, high: 6.0e-3, log: true}\n"
_TRIALS = 2
_STEPS_VARIABLE = "GTVRAY_BENCHMARK_STEPS"
# Counts only while a failpoint is armed; this one never acts, as there is no such rank.
_NEVER = "training.before_step@99=raise"
# Python runs a module of this name at the start of every process.
_COUNTER = f"""
import os, time
import gtvray.failpoints as points

def count(name, rank=0, act=points._pass):
    if name == "training.before_step" and rank == 0:
        with open(os.path.join(os.environ["{_STEPS_VARIABLE}"], str(os.getpid())), "a") as file:
            file.write(f"{{time.time()}}\\n")
    return act(name, rank)

points._pass = count
"""
_POLL_S, _MOST_S = 0.05, 300.0


@dataclass(frozen=True)
class Watched:
    """Folders in which a fault and the steps leave their times."""

    steps: Path
    once: Path

    def fault_at(self) -> float:
        """Unix time of the fault."""
        (file,) = self.once.iterdir()
        return file.stat().st_mtime

    def outcome(self, needed: int) -> dict[str, Any]:
        """Seconds to the first step of a new process, and steps beyond those needed, in checkpoint intervals."""
        times = {file.name: [float(line) for line in file.read_text().split()] for file in self.steps.iterdir()}
        at = self.fault_at()
        after = [first for first, *_ in times.values() if first > at]
        lost = sum(map(len, times.values())) - needed
        return {
            "recovery_s": round(min(after) - at, 2) if after else None,
            "lost_steps": lost,
            "lost_steps_ratio": round(lost / STEPS, 3),
        }


def measure_faults(data: Path, root: Path) -> dict[str, dict[str, Any]]:
    """Recovery by fault.

    Args:
        data: phantoms.
        root: empty folder for everything else.
    """
    config = load_config(overrides=[f"{key}={value}" for key, value in SETTINGS.items()] + ["training.num_workers=2"])
    cases = CaseCache(root / "cache", config.preprocessing, config.cache).prepare_all(index_dataset(data).cases[:6])
    middle, end = STEPS + STEPS // 2, 2 * STEPS
    return {
        "worker_killed_in_mid_epoch": _group_fault(
            f"training.before_step@1:{middle}=kill", config, cases, root / "mid"
        ),
        "worker_killed_at_the_end_of_an_epoch": _group_fault(
            f"training.before_step@1:{end}=kill", config, cases, root / "end"
        ),
        "node_removed": _group_fault(f"training.before_step@0:{middle}=hang", config, cases, root / "node", nodes=2),
        "driver_killed_and_resumed": _driver_fault(data, root / "driver"),
    }


@contextmanager
def _armed(fault: str, root: Path) -> Iterator[Watched]:
    """Arm a fault in every process that is started from here, and count the steps of each."""
    watched, code = Watched(root / "steps", root / "once"), root / "code"
    for folder in (watched.steps, watched.once, code):
        folder.mkdir(parents=True)
    (code / "sitecustomize.py").write_text(_COUNTER)
    variables = {
        VARIABLE: f"{fault},{_NEVER}",
        ONCE_VARIABLE: str(watched.once),
        _STEPS_VARIABLE: str(watched.steps),
        "PYTHONPATH": os.pathsep.join(filter(None, [str(code), os.environ.get("PYTHONPATH")])),
    }
    with patch.dict(os.environ, variables):
        yield watched


def _group_fault(fault: str, config: Config, cases: list[CachedCase], root: Path, nodes: int = 1) -> dict[str, Any]:
    """A training of two workers of one node; with two nodes, theirs is removed when the fault has come."""
    with _armed(fault, root) as watched, _pairs(nodes) as cluster, connect(str(cluster.address)):
        removing: threading.Thread | None = None
        reports = []
        for report in fit_distributed(config, cases[:4], cases[4:], root / "run"):
            reports.append(report)
            if nodes > 1 and removing is None:
                removing = threading.Thread(target=_remove, args=(cluster, _node_of_workers(), watched))
                removing.start()
        if removing is not None:
            removing.join()
    notes = [report.notes for report in reports if report.notes]
    return {**watched.outcome(EPOCHS * STEPS), "epochs": len(reports), "notes": notes}


@contextmanager
def _pairs(nodes: int) -> Iterator[Simulated]:
    """A cluster of nodes with two CPUs each, and a head without any."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # On Ray's default port a second cluster of this machine would have no dashboard, which lists the actors.
    cluster = Simulated(initialize_head=True, head_node_args={"num_cpus": 0, "dashboard_port": port})
    try:
        for _ in range(nodes):
            cluster.add_node(num_cpus=2, object_store_memory=100 << 20)
        cluster.wait_for_nodes()
        yield cluster
    finally:
        cluster.shutdown()


def _node_of_workers() -> str:
    from ray.util.placement_group import placement_group_table

    created = [group for group in placement_group_table().values() if group["state"] == "CREATED"]
    (node,) = {node for group in created for node in group["bundles_to_node_id"].values()}
    return str(node)


def _remove(cluster: Simulated, node_id: str, watched: Watched) -> None:
    while not any(watched.once.iterdir()):
        time.sleep(_POLL_S)
    (node,) = [node for node in cluster.worker_nodes if node.node_id == node_id]
    cluster.remove_node(node, allow_graceful=False)


def _driver_fault(data: Path, root: Path) -> dict[str, Any]:
    """A submitted sweep whose process is killed after two epochs of its first trial, and is restarted by its job."""
    with _armed("tuning.after_report:2=kill", root) as watched, connect(cpus=2):
        from ray._private.worker import get_dashboard_url

        base = "".join(f"  {key}: {value}\n" for key, value in SETTINGS.items())
        (root / "space.yaml").write_text(f"{_SWEEP}base:\n{base}{_SPACE}")
        jobs, workspace = Jobs(f"http://{get_dashboard_url()}"), root / "runs"
        command = ["sweep", str(root / "space.yaml"), "--data", str(data), "--workspace", str(workspace)]
        job = jobs.submit(command, installed=False, notify=partial(print, file=sys.stderr), retries=1)
        deadline = time.monotonic() + _MOST_S
        while not jobs.state(job).is_over and time.monotonic() < deadline:
            time.sleep(1)
        succeeded = jobs.state(job).status == "SUCCEEDED"
        if not succeeded:
            sys.stderr.write(jobs.log(job))
    records = list(workspace.glob("sweeps/*/trials.jsonl"))
    lines = [line for record in records for line in read_json_lines(record)]
    completed = {line["trial"] for line in lines if line.get("state") == "completed"}
    return {
        **watched.outcome(_TRIALS * EPOCHS * STEPS),
        "lost_trials": _TRIALS - len(completed),
        "lost_jobs": int(not succeeded),
    }
