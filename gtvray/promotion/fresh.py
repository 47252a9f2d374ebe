"""A run of a bundle in a fresh process: whether it loads and computes the same logits, and its time and memory.

`python -m gtvray.promotion.fresh JSON` is that process; JSON has the keys `bundle`, `threads`, `golden`, `scan` and
`device`.
"""

from __future__ import annotations

import hashlib
import json
import resource
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gtvray.evaluation import REPRODUCED_DICE, reproduce
from gtvray.inference import Predictor
from gtvray.io import read_volume
from gtvray.models import Bundle
from gtvray.promotion.gate import Cost
from gtvray.runtime import processor_name

# On a busy host, starting Python and importing torch takes most of this time.
TIMEOUT_S = 110.0


@dataclass(frozen=True)
class FreshRun:
    """Result of a run in a fresh process.

    Attributes:
        same: whether it loaded the bundle and computed bit-identical logits for a fixed patch.
        golden: whether it reproduced the golden cases; None if there are none.
        cost: time and memory of a scan; None if none was given or the process failed.
    """

    same: bool
    golden: bool | None = None
    cost: Cost | None = None


def run_fresh(
    bundle: Bundle,
    threads: int,
    *,
    golden: Path | None = None,
    scan: Path | None = None,
    device: str = "cpu",
    timeout_s: float = TIMEOUT_S,
) -> FreshRun:
    """Load a bundle in a fresh process and compare its logits with those of this process.

    Args:
        bundle: the bundle.
        threads: CPU threads of the network.
        golden: folder of its golden cases, to be reproduced.
        scan: file of a scan that time and memory are measured with.
        device: device that they are measured on, that of a serving replica: `cpu` or `cuda`.
        timeout_s: time limit in seconds; a process that takes longer counts as failed.
    """
    files = {"golden": golden and str(golden), "scan": scan and str(scan)}
    job = {"bundle": str(bundle.folder), "threads": threads, "device": device, **files}
    command = [sys.executable, "-m", "gtvray.promotion.fresh", json.dumps(job)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=True)
        found = json.loads(done.stdout.splitlines()[-1])
    except (subprocess.SubprocessError, json.JSONDecodeError, IndexError):
        return FreshRun(False, None if golden is None else False)
    expected = _output(Predictor(Bundle.load(bundle.folder), threads=threads))
    cost = Cost(**found["cost"]) if found["cost"] is not None else None
    return FreshRun(found["output"] == expected, found["golden"], cost)


def _run(job: dict[str, Any]) -> dict[str, Any]:
    predictor = Predictor(Bundle.load(Path(job["bundle"])), threads=job["threads"])
    output = _output(predictor)
    golden, cost = None, None
    if job["scan"] is not None:
        # Logits are compared on the CPU, time is measured on the device of a serving replica.
        timed = predictor if job["device"] == "cpu" else Predictor(predictor.bundle, device=job["device"])
        timed.warm()
        scan = read_volume(Path(job["scan"]))
        start = time.perf_counter()
        timed.predict(scan, job["scan"])
        seconds = time.perf_counter() - start
        peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        cost = {"seconds": seconds, "peak_mb": peak_mb, "host": _host(job["threads"], job["device"])}
    if job["golden"] is not None:
        golden = all(result.dice >= REPRODUCED_DICE for result in reproduce(Path(job["golden"]), predictor))
    return {"output": output, "golden": golden, "cost": cost}


def _host(threads: int, device: str) -> str:
    gpu = f", {torch.cuda.get_device_name()}" if device == "cuda" else ""
    return f"{processor_name()}, {threads} threads{gpu}"


def _output(predictor: Predictor) -> dict[str, str]:
    """Return the digest of a bundle and the sha256 of its logits for a patch of fixed noise."""
    channels = predictor.bundle.preprocessing.channels
    patch = np.random.default_rng(0).random((channels, *predictor.bundle.patch_ijk), dtype=np.float32)
    logits = predictor.forward([patch])
    return {"digest": predictor.bundle.digest, "logits": hashlib.sha256(logits.tobytes()).hexdigest()}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(_run(json.loads(sys.argv[1]))) + "\n")
