"""Planning, waiting and a sweep on simulated nodes: `python simulated.py FILE PHANTOMS` writes the results.

It runs in its own process, because the test session is connected to another cluster. The nodes are raylets of one
machine, and their GPUs exist only as Ray resources.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from ray.cluster_utils import Cluster as Simulated
from ray.util.state import list_actors

sys.path.insert(0, str(Path(__file__).parents[2]))

from gtvray.config import load_config
from gtvray.errors import GtvrayError
from gtvray.experiments.tasks import plan_on, worker_memory_bytes
from gtvray.runtime import Needs, connect, reserved, shown_waiting
from tests.cli.command import TINY_SWEEP
from tests.ports import head_arguments

GPU = load_config(overrides=["training.use_gpu=true"])
SIX = load_config(overrides=["training.cpus_per_worker=6"])
WAITS = load_config(overrides=["training.cpus_per_worker=3", "training.resources_wait_s=4"])


class Recorder:
    """Records the reasons for waiting, with the seconds after which they were reported."""

    def __init__(self) -> None:
        self.began, self.reasons = time.monotonic(), [(0.0, "")]

    def begin(self, stage: str, detail: str) -> None: ...

    def advance(self, done: float, total: float, detail: str = "") -> None: ...

    def note(self, text: str) -> None: ...

    def waiting(self, reason: str | None) -> None:
        if reason is not None and reason != self.reasons[-1][1]:
            self.reasons.append((time.monotonic() - self.began, reason))


def main(file: Path, phantoms: Path) -> None:
    simulated = Simulated(initialize_head=True, head_node_args=head_arguments())
    for _ in range(4):
        simulated.add_node(num_cpus=2, memory=8_000_000_000)
    simulated.wait_for_nodes()
    found: dict[str, Any] = {}
    with connect(simulated.address) as cluster:
        found["nodes"] = [(node.cpus, node.gpus, node.count) for node in cluster.nodes]
        found["concurrent"] = plan_on(cluster, load_config()).concurrent
        found["six"] = failure(lambda: plan_on(cluster, SIX))
        found["no_gpu"] = failure(lambda: plan_on(cluster, GPU))
    found["sweep"] = sweep(simulated.address, phantoms)
    autoscaled(simulated.address, 3)
    with connect(simulated.address) as cluster:
        plan = plan_on(cluster, WAITS)
        found["growing"] = (plan.concurrent, plan.fits_now)
        recorder = Recorder()
        found["waited"] = failure(lambda: worker_memory_bytes(WAITS, cluster, recorder))
        found["reasons"] = recorder.reasons[1:]
        recorder, came = Recorder(), threading.Event()
        waiter = threading.Thread(target=wait_for_node, args=(plan.needs, recorder, came))
        waiter.start()
        while len(recorder.reasons) == 1:
            time.sleep(0.2)
        simulated.add_node(num_cpus=4, memory=8_000_000_000)
        waiter.join()
        found["came"] = came.is_set()
        simulated.add_node(num_cpus=4, num_gpus=1, memory=16_000_000_000)
        simulated.wait_for_nodes()
    with connect(simulated.address) as cluster:
        # The GPU is only simulated, so torch finds none, on the worker and not on the driver.
        found["asked"] = failure(lambda: worker_memory_bytes(GPU, cluster))
    simulated.shutdown()
    file.write_text(json.dumps(found))


def sweep(address: str, phantoms: Path) -> dict[str, Any]:
    """Run a sweep whose trials need a whole node each, and return its result and the nodes that they ran on."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "tiny.yaml").write_text(TINY_SWEEP + "max_concurrent: 2\n")
        words = ["sweep", f"{folder}/tiny.yaml", "--data", phantoms, "--workspace", f"{folder}/runs", "--json"]
        command = [sys.executable, "-m", "gtvray", *words, "--address", address, "training.cpus_per_worker=2"]
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=300)
    # Tune gives the actors of all trials one class.
    actors = [each for each in list_actors(address, limit=1000) if each.class_name.endswith("ResourceTrainable")]
    nodes, left = [actor.node_id for actor in actors], [actor.state for actor in actors if actor.state != "DEAD"]
    return {"code": done.returncode, "stdout": done.stdout, "stderr": done.stderr, "nodes": nodes, "left": left}


def wait_for_node(needs: Needs, recorder: Recorder, came: threading.Event) -> None:
    with shown_waiting(recorder), reserved(needs, 1, 60, recorder.waiting):
        came.set()


def failure(call: Any) -> str:
    try:
        return f"no error: {call()}"
    except GtvrayError as error:
        return str(error)


def autoscaled(address: str, nodes: int) -> None:
    """Write to Ray's GCS what an autoscaler writes: the groups of nodes that it can start."""
    from ray._raylet import GCS_AUTOSCALER_CLUSTER_CONFIG_KEY, GCS_AUTOSCALER_STATE_NAMESPACE
    from ray.core.generated.autoscaler_pb2 import ClusterConfig
    from ray.experimental.internal_kv import _internal_kv_put

    config = ClusterConfig()
    group = config.node_group_configs.add()
    group.name, group.max_count = "workers", nodes
    group.resources.update({"CPU": 4, "memory": 8_000_000_000})
    with connect(address):
        _internal_kv_put(
            GCS_AUTOSCALER_CLUSTER_CONFIG_KEY, config.SerializeToString(), namespace=GCS_AUTOSCALER_STATE_NAMESPACE
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
