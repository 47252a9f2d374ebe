"""The endpoint under load: small scans beside large ones, large bodies, slow clients, a killed gateway.

The endpoint runs in its own process with a local Ray; this process generates the load. The model has random weights
(network of size tiny, patches of 48 voxels at 3 mm), so that times are those of a small trained network.

`small`: seconds of a scan of one patch, alone and while ten scans of about 300 patches are in progress.
`uploads`: 16 bodies of 200 MB at once; memory of the endpoint's process tree above idle (proportional set size, which
counts shared memory and tmpfs mappings once and excludes page cache), and the slowest answer of `/healthz` meanwhile.
`slow`: seconds of the scan of one patch while 40 clients send a body at 1 kB/s.
`kill`: seconds until `/healthz` answers again after SIGKILL of the gateway.

    python benchmarks/serving.py --json [--sections small,uploads,slow,kill]
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from gtvray.geometry import Volume
from gtvray.io import encode_nifti

TOKEN = "a-benchmark-token"  # of an endpoint that ends with this process
SECTIONS = ("small", "uploads", "slow", "kill")
REPEATS = 10
PATCH = 48


def main() -> None:
    """Run the sections and print one JSON line; with --serve, run the endpoint."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="print the results as JSON (the only format)")
    parser.add_argument("--sections", default=",".join(SECTIONS))
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve:
        serve(given.serve)
        return
    functions: dict[str, Callable[[Endpoint, Path], dict[str, Any]]] = {
        "small": small, "uploads": uploads, "slow": slow, "kill": kill,
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as name, endpoint(Path(name)) as running:
        result: dict[str, Any] = {"cpus": os.cpu_count(), "load_before": os.getloadavg()[0]}
        for section in given.sections.split(","):
            result[section] = functions[section](running, Path(name))
        result["load_after"] = os.getloadavg()[0]
    print(json.dumps(result))


def serve(folder: Path) -> None:
    """Start the endpoint, write its address, and run until stdin is closed."""
    from gtvray.config import ServingConfig
    from gtvray.runtime import connect
    from gtvray.serving import start_server

    bundle = write_random(folder / "bundle")
    with connect():
        server = start_server(bundle, ServingConfig(port=18_431), TOKEN)
        server.wait_ready()
        (folder / "port").write_text("18431")
        sys.stdin.read()
        server.stop()


def write_random(folder: Path) -> Path:
    """Write a bundle with random weights; return its folder."""
    import torch

    from gtvray.config import InferenceConfig, NetworkConfig, PreprocessingConfig
    from gtvray.models import build_network, weights_of, write_bundle

    torch.manual_seed(0)
    preprocessing, network, patch_ijk = PreprocessingConfig(), NetworkConfig(size="tiny"), (PATCH, PATCH, PATCH)
    return write_bundle(
        folder,
        weights=weights_of(build_network(network, preprocessing.channels, preprocessing.spacing_mm, patch_ijk)),
        preprocessing=preprocessing,
        network=network,
        inference=InferenceConfig(threshold=0.6),
        patch_ijk=patch_ijk,
        info={},
    ).folder


class Endpoint:
    """The running endpoint.

    Args:
        pid: of its process.
        port: it listens on.
    """

    def __init__(self, pid: int, port: int) -> None:
        self.pid, self.port = pid, port

    def connect(self, timeout_s: float = 400) -> http.client.HTTPConnection:
        """A new connection."""
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout_s)

    def post(self, body: bytes | BinaryIO, size: int) -> tuple[float, int]:
        """Send a scan; return seconds and status."""
        began, connection = time.perf_counter(), self.connect()
        headers = {"Authorization": f"Bearer {TOKEN}", "Content-Length": str(size)}
        connection.request("POST", "/v1/predict", body=body, headers=headers)
        response = connection.getresponse()
        response.read()
        connection.close()
        return time.perf_counter() - began, response.status

    def alive(self) -> bool:
        """Whether `/healthz` answers."""
        connection = self.connect(30)
        try:
            connection.request("GET", "/healthz")
            return connection.getresponse().status == http.client.OK
        except OSError:
            return False
        finally:
            connection.close()

    def tree(self) -> list[int]:
        """Process ids of the endpoint."""
        children: dict[int, list[int]] = {}
        for path in Path("/proc").glob("[0-9]*"):
            try:
                stat = (path / "stat").read_text()
            except OSError:
                continue
            children.setdefault(int(stat.rpartition(")")[2].split()[1]), []).append(int(path.name))
        found, left = [], [self.pid]
        while left:
            found.append(left.pop())
            left += children.get(found[-1], [])
        return found

    def memory_mb(self) -> float:
        """Proportional set size of the process tree."""
        total_kb = 0
        for pid in self.tree():
            try:
                lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
            except OSError:
                continue
            total_kb += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
        return total_kb / 1024


@contextmanager
def endpoint(folder: Path) -> Iterator[Endpoint]:
    """An endpoint with a spool on this folder's disk."""
    environment = {**os.environ, "TMPDIR": str(folder)}
    process = subprocess.Popen(
        [sys.executable, __file__, "--serve", str(folder)], stdin=subprocess.PIPE, stdout=sys.stderr, env=environment
    )
    try:
        while not (folder / "port").exists():
            if process.poll() is not None:
                raise SystemExit("the endpoint did not start")
            time.sleep(0.2)
        yield Endpoint(process.pid, int((folder / "port").read_text()))
    finally:
        assert process.stdin is not None
        process.stdin.close()
        process.wait(120)


def scan(shape: tuple[int, int, int], spacing_mm: float, body: float) -> Volume:
    """A cube of noisy tissue in air, whose side is this share of the scan's."""
    array = np.full(shape, -1000, np.int16, order="F")
    inner = tuple(slice(round(n * (1 - body) / 2), round(n * (1 + body) / 2)) for n in shape)
    array[inner] = np.random.default_rng(0).integers(-80, 120, array[inner].shape)
    return Volume(array, np.diag([spacing_mm, spacing_mm, spacing_mm, 1.0]))


ONE_PATCH = encode_nifti(scan((40, 40, 40), 3.0, 0.8), compress=True)


def one_patch_s(running: Endpoint) -> dict[str, Any]:
    """Seconds of a scan of one patch."""
    answers = [running.post(ONE_PATCH, len(ONE_PATCH)) for _ in range(REPEATS)]
    times = sorted(seconds for seconds, _ in answers)
    status = Counter(str(status) for _, status in answers)
    return {"p50_s": statistics.median(times), "max_s": times[-1], "status": status}


def small(running: Endpoint, _: Path) -> dict[str, Any]:
    """A scan of one patch alone, and beside ten large ones."""
    large = encode_nifti(scan((176, 176, 176), 3.0, 0.97), compress=True)
    one_patch_s(running)
    alone = one_patch_s(running)
    with sending(running, [large] * 10):
        time.sleep(10)
        beside = one_patch_s(running)
    return {"alone": alone, "beside": beside, "ratio": beside["p50_s"] / alone["p50_s"]}


@contextmanager
def sending(running: Endpoint, bodies: list[bytes]) -> Iterator[None]:
    """Requests in progress within a `with` block, whose clients disconnect at its end."""
    connections = []
    for body in bodies:
        connection = running.connect()
        connection.request("POST", "/v1/predict", body=body, headers={"Authorization": f"Bearer {TOKEN}"})
        connections.append(connection)
    yield
    for connection in connections:
        connection.close()


def uploads(running: Endpoint, folder: Path) -> dict[str, Any]:
    """Sixteen bodies of 200 MB at once."""
    path = folder / "large.nii"
    path.write_bytes(encode_nifti(scan((512, 512, 400), 1.0, 0.1), compress=False))
    size, idle_mb, over = path.stat().st_size, running.memory_mb(), threading.Event()
    peaks, health_s = [idle_mb], [0.0]

    def watch(measure: Callable[[], float], into: list[float]) -> None:
        while not over.is_set():
            into.append(measure())
            over.wait(0.2)

    def timed_health() -> float:
        began = time.perf_counter()
        assert running.alive()
        return time.perf_counter() - began

    def post(_: int) -> tuple[float, int]:
        with path.open("rb") as file:
            return running.post(file, size)

    watchers = [
        threading.Thread(target=watch, args=(running.memory_mb, peaks)),
        threading.Thread(target=watch, args=(timed_health, health_s)),
    ]
    for watcher in watchers:
        watcher.start()
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(post, range(16)))
    over.set()
    for watcher in watchers:
        watcher.join()
    return {
        "body_mb": size / 1e6,
        "above_idle_mb": max(peaks) - idle_mb,
        "idle_mb": idle_mb,
        "healthz_max_s": max(health_s),
        "all_s": max(seconds for seconds, _ in answers),
        "status": Counter(str(status) for _, status in answers),
    }


def slow(running: Endpoint, _: Path) -> dict[str, Any]:
    """A scan of one patch beside forty clients that send 1 kB/s."""
    alone, over, statuses = one_patch_s(running), threading.Event(), Counter[str]()

    def crawl() -> None:
        connection = running.connect()
        connection.putrequest("POST", "/v1/predict")
        connection.putheader("Authorization", f"Bearer {TOKEN}")
        connection.putheader("Content-Length", "100000000")
        connection.endheaders()
        body = encode_nifti(scan((100, 100, 100), 3.0, 0.9), compress=False)
        try:
            for start in range(0, 120_000, 1000):
                if over.is_set():
                    statuses["still sending"] += 1
                    return
                connection.send(body[start : start + 1000])
                time.sleep(1)
        except OSError:
            pass
        try:
            statuses[str(connection.getresponse().status)] += 1
        except (OSError, http.client.HTTPException) as error:
            statuses[type(error).__name__] += 1

    clients = [threading.Thread(target=crawl, daemon=True) for _ in range(40)]
    for client in clients:
        client.start()
    time.sleep(3)
    beside = one_patch_s(running)
    time.sleep(15)
    over.set()
    for client in clients:
        client.join(10)
    return {"alone": alone, "beside": beside, "ratio": beside["p50_s"] / alone["p50_s"], "slow_status": statuses}


def kill(running: Endpoint, _: Path) -> dict[str, Any]:
    """SIGKILL of the gateway, three times."""
    away = []
    for _ in range(3):
        pid = next(pid for pid in running.tree() if b"Gateway" in Path(f"/proc/{pid}/cmdline").read_bytes())
        os.kill(pid, signal.SIGKILL)
        began = time.perf_counter()
        while not running.alive():
            time.sleep(0.02)
        away.append(time.perf_counter() - began)
        time.sleep(3)
    return {"away_s": away, "after": one_patch_s(running)["status"]}


if __name__ == "__main__":
    main()
