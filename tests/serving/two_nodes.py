"""The endpoint on two simulated nodes: `python two_nodes.py FILE` writes the results.

It runs in its own process, because the test session is connected to another cluster. The nodes are raylets of one
machine and share the port. The model runs on the second node only; scans that the first one accepts are streamed to it.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import ray
from ray.cluster_utils import Cluster as Simulated
from ray.util.state import list_actors

sys.path.insert(0, str(Path(__file__).parents[2]))

from gtvray.config import InferenceConfig, ServingConfig
from gtvray.inference import Predictor
from gtvray.io import encode_nifti
from gtvray.models import Bundle
from gtvray.runtime import connect
from gtvray.serving import Server, start_server
from tests.bundles import random_bundle
from tests.ports import free_port, head_arguments
from tests.serving.conftest import TOKEN, make_scan

SCAN = encode_nifti(make_scan((24, 24, 24)), compress=True)
BEARER = {"Authorization": f"Bearer {TOKEN}"}


def main(file: Path, folder: Path) -> None:
    bundle = random_bundle(folder / "bundle", inference=InferenceConfig(threshold=0.5))
    token = folder / "token"
    token.write_text(TOKEN)
    simulated = Simulated(initialize_head=True, head_node_args=head_arguments())
    with connect(simulated.address):
        settings = ServingConfig(port=free_port(), memory_gb_per_replica=0, timeout_s=60)
        server = start_server(bundle.folder, settings, TOKEN, "1", token_file=token)
        wait(lambda: len(gateways()) == 1)
        found: dict[str, Any] = {"before": len(gateways())}
        simulated.add_node(num_cpus=2)
        try:
            server.wait_ready(100)
            wait(lambda: len(gateways()) == 2)
            # The first gateway checks for other nodes every few seconds.
            time.sleep(6)
            found |= {"gateways": len(gateways()), "nodes": len(set(gateways().values())), **masks(server, bundle)}
            found["away_s"] = kill_one(server)
        finally:
            server.stop()
    simulated.shutdown()
    file.write_text(json.dumps(found))


def masks(server: Server, bundle: Bundle) -> dict[str, Any]:
    """Send the scan often enough that both gateways get some."""
    expected = encode_nifti(Predictor(bundle, threads=1).predict(make_scan((24, 24, 24))), compress=True)

    def post(_: int) -> httpx.Response:
        return httpx.post(f"{server.url}/v1/predict", content=SCAN, headers=BEARER, timeout=60, trust_env=False)

    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(post, range(40)))
    logs = Path(ray._private.worker._global_node.get_logs_dir_path()) / "serve"
    requests = [log.read_text().count("event=request ") for log in logs.glob("replica_gtvray_Gateway_*.log")]
    return {
        "status": sorted({answer.status_code for answer in answers}),
        "equal": all(answer.content == expected for answer in answers),
        "both": sum(count > 0 for count in requests) == 2,
    }


def kill_one(server: Server) -> float:
    """Kill a gateway, and return the seconds until two listen again."""
    pid = next(iter(gateways()))
    os.kill(pid, signal.SIGKILL)
    began = time.monotonic()
    wait(lambda: len(gateways()) == 2 and pid not in gateways())
    wait(lambda: httpx.get(f"{server.url}/healthz", trust_env=False).status_code == 200)
    return time.monotonic() - began


def gateways() -> dict[int, str]:
    """Process id and node of the gateways that listen."""
    actors = list_actors(ray.get_runtime_context().gcs_address, filters=[("state", "=", "ALIVE")], limit=1000)
    return {actor.pid: actor.node_id for actor in actors if actor.class_name == "ServeReplica:gtvray:Gateway"}


def wait(over: Callable[[], bool], limit_s: float = 60) -> None:
    deadline = time.monotonic() + limit_s
    while not over():
        assert time.monotonic() < deadline, gateways()
        time.sleep(0.1)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        main(Path(sys.argv[1]), Path(folder))
