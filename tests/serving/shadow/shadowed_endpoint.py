"""An endpoint with a shadow version: `python shadowed_endpoint.py FILE` writes the results.

A failpoint kills the replica of the shadow at its second scan; it must be in the environment before Ray starts.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[3]))

from gtvray.config import InferenceConfig, ServingConfig
from gtvray.evaluation import dice
from gtvray.inference import Predictor
from gtvray.io import encode_nifti
from gtvray.models import Bundle
from gtvray.runtime import connect
from gtvray.serving import Candidate, Follow, Server, ShadowPlan, start_server
from tests.bundles import random_bundle
from tests.ports import free_port
from tests.serving.conftest import TOKEN, make_scan

SCANS = {"small": make_scan((24, 24, 24)), "large": make_scan((60, 60, 60))}
HEADERS = {"Authorization": f"Bearer {TOKEN}"}


class Endpoint:
    """The endpoint, its registry, and the expected masks."""

    def __init__(self, folder: Path) -> None:
        self.bundles = [
            random_bundle(folder / str(seed), seed, inference=InferenceConfig(threshold=0.5)) for seed in (1, 2)
        ]
        self.champion = 0
        self.delivered: list[dict[str, Any]] = []
        self.masks = [
            {name: Predictor(bundle, threads=1).predict(scan) for name, scan in SCANS.items()}
            for bundle in self.bundles
        ]
        # Two versions fit, and the shadow only because it reserves no CPU.
        settings = ServingConfig(
            port=free_port(), follow_s=0.2, cpus_per_replica=0.5, memory_gb_per_replica=0.1, shadow_share=1
        )
        self.server: Server = start_server(
            None,
            settings,
            TOKEN,
            follow=Follow(lambda: self.candidate(self.champion), folder / "versions.json", print),
            shadow=ShadowPlan(
                lambda: None if self.champion else self.candidate(1), folder / "shadow.json", print, self.deliver
            ),
        )

    def candidate(self, number: int) -> Candidate:
        bundle: Bundle = self.bundles[number]
        return Candidate(str(number + 1), bundle.digest, bundle.folder, None)

    def deliver(self, records: list[dict[str, Any]]) -> list[Any]:
        self.delivered += records
        return []

    def send(self, name: str) -> bool:
        """Send a scan; return whether the answer is the mask of the version that it names."""
        content = encode_nifti(SCANS[name], compress=True)
        answer = httpx.post(
            f"{self.server.url}/v1/segment", content=content, headers=HEADERS, timeout=100, trust_env=False
        )
        version = int(answer.headers.get("X-Gtvray-Model-Version", "1")) - 1
        return version == self.champion and answer.content == encode_nifti(self.masks[version][name], compress=True)

    def wait(self, reached: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Wait until the answer of /v1/models is as expected, and return it."""
        while True:
            found = httpx.get(f"{self.server.url}/v1/models", headers=HEADERS, timeout=60, trust_env=False).json()
            if reached(found):
                return dict(found)
            time.sleep(0.1)


def main(file: Path, folder: Path) -> None:
    with connect(cpus=1):
        endpoint = Endpoint(folder)
        try:
            found = observe(endpoint)
        finally:
            endpoint.server.stop()
    found["delivered"] = [record["dice"] for record in endpoint.delivered if record["version"]["served"] == "1"]
    found["dice"] = {name: dice(*(np.asarray(masks[name].array, bool) for masks in endpoint.masks)) for name in SCANS}
    file.write_text(json.dumps(found))


def observe(endpoint: Endpoint) -> dict[str, Any]:
    endpoint.server.wait_ready(200)
    models = endpoint.wait(lambda models: models["shadow"]["current"] is not None)
    served, shadow = models["current"]["app"], models["shadow"]["current"]["app"]
    found: dict[str, Any] = {"idle": {"served": idle_threads(served), "shadow": idle_threads(shadow)}}
    right = [endpoint.send("small")]
    endpoint.wait(lambda models: models["shadow"]["compared"] == 1)
    right.append(endpoint.send("small"))
    found["killed"] = endpoint.wait(lambda models: models["shadow"]["failed"] == 1)["shadow"]
    again = found["killed"]
    while again["compared"] < 2:
        right.append(endpoint.send("large"))
        again = endpoint.wait(lambda models: answered(models["shadow"]) == len(right))["shadow"]
    with ThreadPoolExecutor(4) as clients:
        right += clients.map(endpoint.send, ["large", "small", "small", "large", "small", "small"])
    found["busy"] = endpoint.wait(lambda models: answered(models["shadow"]) == len(right))["shadow"]
    endpoint.champion = 1
    found["promoted"] = endpoint.wait(
        lambda models: models["shadow"]["current"] is None and models["current"]["version"] == "2"
    )["shadow"]
    right.append(endpoint.send("small"))
    while idle_threads(shadow):
        time.sleep(0.1)
    return {**found, "right": right}


def answered(shadow: dict[str, Any]) -> int:
    return sum(shadow[outcome] for outcome in ("compared", "dropped", "failed"))


def idle_threads(app: str) -> int:
    """Number of threads of an application's replicas with the scheduling policy SCHED_IDLE."""
    count = 0
    for process in Path("/proc").glob("[0-9]*"):
        # Processes and threads may end meanwhile.
        with suppress(OSError):
            if (process / "cmdline").read_bytes().startswith(f"ray::ServeReplica:{app}:".encode()):
                policies = [os.sched_getscheduler(int(thread.name)) for thread in process.glob("task/*")]
                count += policies.count(os.SCHED_IDLE)
    return count


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        main(Path(sys.argv[1]), Path(folder))
