"""The endpoint beside plain FastAPI around the same predictor, and around MONAI's sliding window.

All have the same model and threads, run one after the other, and get the same requests over the loopback.

`throughput`: scans per second with 1, 4 and 16 clients, each of which sends a scan when the previous one is answered.
`beside`: seconds of a scan of one patch, alone and while ten of the largest scans are in progress.
`overhead`: median seconds of a scan of one patch over HTTP, less those of decoding, prediction and encoding in a
process that does nothing else.

Masks of gtvray and of FastAPI around its predictor must equal the offline masks byte by byte. MONAI's have other
voxels, as it resamples and inverts in another way; their Dice with the offline masks shows whether it did the same
work. It runs the network with torch in fp32, whatever backend and precision the bundle has, which `inference` states.
Every server gets each scan equally often, so the numbers of requests are multiples of the number of scans. A number of
clients above that of the requests is left out, as it would not be reached.

    python benchmarks/serving_peers.py --json [--model BUNDLE --scans SCAN ...]
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

from _common import version
from serving import ONE_PATCH, TOKEN, scan, write_random

from gtvray.io import decode_nifti, encode_nifti
from gtvray.models import Bundle

PORT = 18_441
CLIENTS = (1, 4, 16)
REPEATS = 20
LARGE_AT_ONCE = 10
SERVERS = ("gtvray", "fastapi", "fastapi_monai")


def main() -> None:
    """Run all servers and print one JSON line; with --be, run as one of its processes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="no effect; the output is always JSON")
    parser.add_argument("--model", type=Path, help="bundle with one network; random weights by default")
    parser.add_argument("--scans", type=Path, nargs="+", help="scans to send, NIfTI; cubes of tissue by default")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--requests", type=int, default=48, help="requests for each number of clients")
    parser.add_argument("--monai-requests", type=int, default=6, help="the same for MONAI, which takes longer")
    parser.add_argument("--servers", default=",".join(SERVERS))
    parser.add_argument("--be", choices=["endpoint", "offline"], help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.be:
        {"endpoint": be_endpoint, "offline": be_offline}[given.be](given)
        return
    scans = len(given.scans) if given.scans else len(cubes())
    if given.requests % scans or given.monai_requests % scans:
        parser.error(f"--requests and --monai-requests must be multiples of the number of scans, {scans}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = given.model or write_random(folder / "bundle")
        bodies = [path.read_bytes() for path in given.scans] if given.scans else cubes()
        print(json.dumps(compare(folder, model, bodies, given)))


def cubes() -> list[bytes]:
    """Scans of one patch and of about 30 patches."""
    medium = encode_nifti(scan((88, 88, 88), 3.0, 0.95), compress=True)
    return [ONE_PATCH, ONE_PATCH, medium]


def compare(folder: Path, model: Path, bodies: list[bytes], given: argparse.Namespace) -> dict[str, Any]:
    """Measure each server."""
    result: dict[str, Any] = {
        "benchmark": "serving_peers",
        "cpus": os.cpu_count(),
        "threads": given.threads,
        "load_before": os.getloadavg()[0],
        "versions": {name: version(name) for name in ("gtvray", "ray", "torch", "monai", "fastapi", "openvino")},
        "scan_kb": [len(body) // 1000 for body in bodies],
        "inference": Bundle.load(model).inference.model_dump(mode="json"),
    }
    sent = {ONE_PATCH: None, **dict.fromkeys(bodies)}
    expected, alone_s = offline(folder, model, list(sent), given.threads)
    result["offline_one_patch_s"] = alone_s
    for name in given.servers.split(","):
        count = given.monai_requests if name == "fastapi_monai" else given.requests
        with server(name, folder, model, given.threads) as client:
            answers = {body: client(body)[1] for body in bodies}
            found: dict[str, Any] = {"equal_masks": [answers[body] == expected[body] for body in answers]}
            if name == "fastapi_monai":
                found["dice"] = [dice(answers[body], expected[body]) for body in answers]
            found["throughput"] = {str(n): throughput(client, bodies, n, count) for n in CLIENTS if n <= count}
            if name != "fastapi_monai":
                found |= beside(client, max(bodies, key=len))
        result[name] = found
    result["load_after"] = os.getloadavg()[0]
    return {**result, **ratios(result)}


def ratios(result: dict[str, Any]) -> dict[str, Any]:
    """Compute the compared ratios from the measurements."""
    ours, found = result.get("gtvray"), dict[str, Any]()
    if ours is None:
        return found
    found["overhead_ms"] = round(1000 * (ours["alone"]["p50_s"] - result["offline_one_patch_s"]), 1)
    for peer in ("fastapi", "fastapi_monai"):
        if peer in result:
            theirs = result[peer]["throughput"]
            rates = {n: (rate, theirs[n]) for n, rate in ours["throughput"].items() if n in theirs}
            found[f"throughput_vs_{peer}"] = {
                n: round(one["scans_per_s"] / other["scans_per_s"], 2) for n, (one, other) in rates.items()
            }
    if "fastapi" in result:
        found["beside_p99_vs_fastapi"] = round(ours["beside"]["p99_s"] / result["fastapi"]["beside"]["p99_s"], 3)
    return found


Client = Callable[[bytes], tuple[float, bytes]]


def throughput(client: Client, bodies: list[bytes], clients: int, count: int) -> dict[str, Any]:
    """Scans per second, and the seconds of each."""
    queue = list(itertools.islice(itertools.cycle(bodies), count))
    began = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        seconds = sorted(each for each, _ in pool.map(client, queue))
    return {"scans_per_s": count / (time.perf_counter() - began), **summary(seconds)}


def beside(client: Client, large: bytes) -> dict[str, Any]:
    """A scan of one patch alone, and beside large ones."""
    alone = summary([client(ONE_PATCH)[0] for _ in range(REPEATS)])
    over = threading.Event()

    def keep_busy(_: int) -> None:
        while not over.is_set():
            with suppress(httpx.HTTPError):
                client(large)

    with ThreadPoolExecutor(LARGE_AT_ONCE) as pool:
        busy = [pool.submit(keep_busy, number) for number in range(LARGE_AT_ONCE)]
        time.sleep(5)
        found = summary([client(ONE_PATCH)[0] for _ in range(REPEATS)])
        over.set()
        for each in busy:
            each.result()
    return {"alone": alone, "beside": found, "beside_ratio": found["p50_s"] / alone["p50_s"]}


def summary(seconds: list[float]) -> dict[str, Any]:
    """Median, 99th percentile and count; with fewer than 100 values the 99th percentile is the largest."""
    return {
        "p50_s": statistics.median(seconds),
        "p99_s": float(np.quantile(seconds, 0.99, method="higher")),
        "requests": len(seconds),
    }


@contextmanager
def server(name: str, folder: Path, model: Path, threads: int) -> Iterator[Client]:
    """A running server, as a function that sends a scan and returns seconds and mask."""
    here = Path(__file__)
    commands = {
        "gtvray": [here, "--be", "endpoint"],
        "fastapi": [here.parent / "peers" / "serving_fastapi.py", "predictor", "--port", PORT],
        "fastapi_monai": [here.parent / "peers" / "serving_fastapi.py", "monai", "--port", PORT],
    }
    command = [sys.executable, *map(str, commands[name]), "--model", str(model), "--threads", str(threads)]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=sys.stderr, env={**os.environ, "TMPDIR": str(folder)}
    )
    headers = {"Authorization": f"Bearer {TOKEN}"}
    limits = httpx.Limits(max_connections=64, max_keepalive_connections=64)
    with httpx.Client(trust_env=False, timeout=3600, headers=headers, limits=limits) as client:

        def send(body: bytes) -> tuple[float, bytes]:
            began = time.perf_counter()
            response = client.post(f"http://127.0.0.1:{PORT}/v1/segment", content=body)
            response.raise_for_status()
            return time.perf_counter() - began, response.content

        try:
            wait_ready(client, process, "/readyz" if name == "gtvray" else "/healthz")
            yield send
        finally:
            assert process.stdin is not None
            process.stdin.close()
            if name != "gtvray":
                process.terminate()
            process.wait(120)


def wait_ready(client: httpx.Client, process: subprocess.Popen[bytes], path: str) -> None:
    """Return when the server answers."""
    while True:
        with suppress(httpx.TransportError):
            if client.get(f"http://127.0.0.1:{PORT}{path}").status_code == httpx.codes.OK:
                return
        if process.poll() is not None:
            raise SystemExit("the server did not start")
        time.sleep(0.5)


def offline(folder: Path, model: Path, bodies: list[bytes], threads: int) -> tuple[dict[bytes, bytes], float]:
    """Offline masks of scans, and the median seconds of the scan of one patch, from a process of their own."""
    paths = []
    for number, body in enumerate(bodies):
        paths.append(folder / f"{number}.nii.gz")
        paths[-1].write_bytes(body)
    command = [sys.executable, __file__, "--be", "offline", "--model", str(model), "--threads", str(threads)]
    done = subprocess.run([*command, "--scans", *map(str, paths)], check=True, stdout=subprocess.PIPE)
    masks = [path.with_suffix(".mask").read_bytes() for path in paths]
    return dict(zip(bodies, masks, strict=True)), float(json.loads(done.stdout)["one_patch_s"])


def be_offline(given: argparse.Namespace) -> None:
    """Write the masks of scans beside them, and print the median seconds of the first."""
    from gtvray.inference import Predictor

    predictor = Predictor(Bundle.load(given.model), threads=given.threads)
    predictor.warm()
    for path in given.scans:
        mask = predictor.predict(decode_nifti(path.read_bytes()))
        path.with_suffix(".mask").write_bytes(encode_nifti(mask, compress=True))
    seconds = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        encode_nifti(predictor.predict(decode_nifti(ONE_PATCH)), compress=True)
        seconds.append(time.perf_counter() - began)
    print(json.dumps({"one_patch_s": statistics.median(seconds)}))


def be_endpoint(given: argparse.Namespace) -> None:
    """Run gtvray's endpoint until stdin is closed."""
    from gtvray.config import ServingConfig
    from gtvray.runtime import connect
    from gtvray.serving import start_server

    settings = ServingConfig(
        port=PORT, cpus_per_replica=given.threads, max_pending=64, timeout_s=3600, client_requests_per_minute=100_000
    )
    with connect():
        endpoint = start_server(given.model, settings, TOKEN)
        sys.stdin.read()
        endpoint.stop()


def dice(one: bytes, other: bytes) -> float:
    """Dice of two masks."""
    from gtvray.evaluation import dice as of_masks

    return float(of_masks(decode_nifti(one).array > 0, decode_nifti(other).array > 0))


if __name__ == "__main__":
    main()
