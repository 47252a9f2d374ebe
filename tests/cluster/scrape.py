"""Metrics that Ray exports to Prometheus: `python scrape.py FILE` runs a small workload and writes name -> labels.

It runs in its own process, because the test session is connected to another cluster.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
import urllib.request
from contextlib import suppress
from pathlib import Path

from gtvray.runtime import connect

_LONGEST_S = 90.0
_SAMPLE = re.compile(r"([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(.*)\})? ")
_LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="')


def main(file: Path, wanted: set[str]) -> None:
    """Scrape until every wanted metric has been found, for a limited time."""
    with connect(cpus=4):
        import ray
        from ray import serve

        exercise()
        (port,) = [row["MetricsExportPort"] for row in ray.nodes()]
        deadline, found = time.monotonic() + _LONGEST_S, {}
        while (not found or wanted - set(found)) and time.monotonic() < deadline:
            time.sleep(5)
            found |= scrape(f"http://127.0.0.1:{port}/metrics")
        serve.shutdown()
    file.write_text(json.dumps(found, indent=1, sort_keys=True))


def scrape(url: str) -> dict[str, list[str]]:
    """Return the names of the labels of each metric."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(url, timeout=10) as answer:
        text = answer.read().decode()
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        if (match := _SAMPLE.match(line)) is not None:
            labels = set(_LABEL.findall(match[2] or "")) | set(found.get(match[1], []))
            found[match[1]] = sorted(labels)
    return found


def exercise() -> None:
    """Create a placement group, a task that dies, a training that reports, and an endpoint with requests."""
    import ray
    from ray import serve, train
    from ray.exceptions import RayTaskError, WorkerCrashedError
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
    from ray.util.placement_group import placement_group

    group = placement_group([{"CPU": 1}])
    ray.get(group.ready())
    with suppress(WorkerCrashedError):
        ray.get(ray.remote(num_cpus=0, max_retries=0)(lambda: os._exit(1)).remote())

    def report() -> None:
        for epoch in range(2):
            train.report({"epoch": epoch})
            time.sleep(1)

    DataParallelTrainer(report, scaling_config=train.ScalingConfig(num_workers=1)).fit()

    @serve.deployment(max_ongoing_requests=2)
    class Echo:
        def __call__(self, fails: bool) -> str:
            if fails:
                raise ValueError("asked for")
            return "here"

    # Without proxies, as gtvray's endpoint.
    serve.start(proxy_location="Disabled")
    handle = serve.run(Echo.bind(), name="gtvray", route_prefix=None)
    for fails in (False, False, False, True):
        with suppress(RayTaskError):
            handle.remote(fails).result()


if __name__ == "__main__":
    main(Path(sys.argv[1]), set(sys.argv[2:]))
