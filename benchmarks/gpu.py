"""Training and inference on one CUDA GPU, beside MONAI and nnU-Net, in at most eight minutes.

Parts run one after another, each in its own process with a limit of two minutes; a part for which too little time is
left is skipped with the reason. After each part, a line of JSON with its result is printed: the first has the GPU, the
driver and the version of torch, the last all results. A part reports intermediate results, so that one that exceeds
its limit keeps the repetitions it has finished.

- `training-SIZE-PATCH`: gtvray's `fit` on phantoms at 1.5 mm, in bf16 where the GPU has it, batch 2, SGD, nnU-Net's
  augmentation: eager, compiled, and with CUDA graphs. Steps per second of the second epoch, the share of time that the
  GPU was busy (nvidia-smi, every 100 ms), the share spent waiting for patches, and peak memory. SIZE is `small` (the
  default network) or `large` (31 million parameters); PATCH is `cube` (128 x 128 x 128) or `flat` (192 x 192 x 32).
- `training-SIZE-PATCH-monai`: the same network, patch, batch, precision and optimizer in the loop of MONAI's
  tutorials: CacheDataset, its random transforms with the same probabilities, a DataLoader with worker processes,
  DiceCELoss.
- `training-SIZE-PATCH-nnunet`: nnU-Net's own trainer, loader, augmentation processes and torch.compile, with its
  defaults. Only if `--nnunet-python` names a Python with nnU-Net; its preprocessing is not timed.
- `inference`: a scan of StructSeg's size (512 x 512 x 124) from file to mask with the large network, modes body and
  localised, by stage, cold and warm; `inference-monai` is MONAI's sliding window and `inference-nnunet` nnU-Net's
  predictor with the same, random, weights. `logits_rmse_to_cpu` is the difference between the GPU's logits of a patch
  and the CPU's in fp32, as a share of their standard deviation.
- `demo`: `gtvray demo` with training and endpoint on the GPU.

`--tiny` runs every part with networks and patches that take seconds, also on a CPU, to test this script; its results
have no meaning.

    python benchmarks/gpu.py --json [--nnunet-python /path/to/its/bin/python] [--only training-large-cube,inference]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from _common import version

PART_S, WHOLE_S = 120.0, 480.0
# Started with less time than this left, a part would be cut off before its first result.
LEAST_S = 15.0
# The most informative parts come first, because the last ones are skipped if time runs out.
PARTS = (
    "training-large-cube",
    "inference",
    "training-large-cube-monai",
    "inference-monai",
    "training-large-cube-nnunet",
    "inference-nnunet",
    "demo",
    "training-small-cube",
    "training-large-flat",
    "training-small-cube-monai",
    "training-large-flat-monai",
    "training-small-flat",
    "training-small-flat-monai",
)
HERE = Path(__file__).parent


def main() -> None:
    """Run the parts and print one JSON line for each, then one with all results."""
    given = arguments()
    if given.part:
        from _gpu_parts import run_part

        run_part(given)
        return
    began = time.monotonic()
    asked = given.only.split(",") if given.only else PARTS
    with tempfile.TemporaryDirectory() as scratch:
        given.work = Path(scratch)
        facts = run("prepare", given, PART_S)
        print(json.dumps({"part": "prepare", **facts}), flush=True)
        parts: dict[str, dict[str, Any]] = {}
        # Without a GPU all results are null, so that the other benchmarks of `make bench` still run.
        possible = "failed" not in facts and (facts["card"] or given.tiny)
        for name in PARTS:
            if name not in asked or not possible:
                continue
            left_s = WHOLE_S - (time.monotonic() - began)
            parts[name] = skipped(name, given, left_s) or run(name, given, min(PART_S, left_s))
            print(json.dumps({"part": name, **parts[name]}), flush=True)
    seconds = round(time.monotonic() - began, 1)
    print(json.dumps({**report(parts, facts), **facts, "parts": parts, "seconds": seconds, "tiny": given.tiny}))


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="no effect; the output is always JSON")
    parser.add_argument("--tiny", action="store_true", help="small networks and patches, to test this script")
    parser.add_argument("--only", help=f"parts, separated by commas: {', '.join(PARTS)}")
    parser.add_argument("--threads", type=int, default=min(16, os.cpu_count() or 1))
    here = sys.executable if find_spec("nnunetv2") else None
    parser.add_argument("--nnunet-python", type=Path, default=os.environ.get("GTVRAY_BENCH_NNUNET", here))
    parser.add_argument("--part", help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def skipped(name: str, given: argparse.Namespace, left_s: float) -> dict[str, Any] | None:
    """Why a part is not run; None if it is."""
    if left_s < LEAST_S:
        return {"skipped": f"{max(0.0, left_s):.0f} s left of {WHOLE_S:.0f}"}
    if name.endswith("nnunet") and not given.nnunet_python:
        return {"skipped": "nnU-Net is not installed"}
    return None


def run(name: str, given: argparse.Namespace, limit_s: float) -> dict[str, Any]:
    """Run one part in its own process; return the JSON that it printed, also if it exceeded the limit."""
    if name.endswith("-nnunet"):
        script = str(HERE / "peers" / "gpu_nnunet.py")
        command = [str(given.nnunet_python), script, name, str(given.work), str(given.threads)]
    else:
        command = [sys.executable, __file__, "--part", name, "--work", str(given.work), "--threads", str(given.threads)]
        command += ["--tiny"] if given.tiny else []
        command += ["--nnunet-python", str(given.nnunet_python)] if given.nnunet_python else []
    log = given.work / f"{name}.log"
    began = time.monotonic()
    with log.open("w") as errors:
        # In its own session, so that processes that the part has started are killed with it.
        child = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, text=True, start_new_session=True, cwd=given.work
        )
        try:
            output, _ = child.communicate(timeout=limit_s)
            ended = None if child.returncode == 0 else f"exit code {child.returncode}"
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, 9)
            output, _ = child.communicate()
            ended = f"cut off after {limit_s:.0f} s"
    found: dict[str, Any] = {}
    for line in output.splitlines():
        if line.startswith("{"):
            found |= json.loads(line)
    if ended is not None:
        found |= {"failed": ended, "log": log.read_text(errors="replace")[-1500:]}
    return {**found, "part_s": round(time.monotonic() - began, 1)}


def report(parts: dict[str, dict[str, Any]], facts: dict[str, Any]) -> dict[str, Any]:
    """Return the headline results; null where a part gave none."""

    def steps(name: str) -> dict[str, float | None]:
        ends = {"cube": f"large-cube{name}", "flat": f"large-flat{name}"}
        ends |= {"small_cube": f"small-cube{name}", "small_flat": f"small-flat{name}"}
        return {key: parts.get(f"training-{end}", {}).get("steps_s") for key, end in ends.items()}

    ours, peers = steps(""), {"monai": steps("-monai"), "nnunet": steps("-nnunet")}
    inference = parts.get("inference", {})
    peer_s = {name: parts.get(f"inference-{name}", {}).get("warm_s") for name in ("monai", "nnunet")}
    peaks = [part["peak_gb"] for part in parts.values() if part.get("peak_gb") is not None]
    return {
        "benchmark": "gpu",
        "card": facts.get("card"),
        "torch": facts.get("torch"),
        "training_steps_s": ours,
        "peer_steps_s": peers,
        "training_ratio": {name: {key: ratio(ours[key], peers[name][key]) for key in ours} for name in peers},
        "gpu_busy_share": {name: part["gpu_busy_share"] for name, part in parts.items() if "gpu_busy_share" in part},
        "data_wait_share": {name: part["data_wait_share"] for name, part in parts.items() if "data_wait_share" in part},
        "inference_s": inference.get("body", {}).get("warm_s"),
        "localised_s": inference.get("localised", {}).get("warm_s"),
        "peer_inference_s": peer_s,
        "inference_ratio": {
            name: ratio(seconds, inference.get("body", {}).get("warm_s")) for name, seconds in peer_s.items()
        },
        "logits_rmse_to_cpu": inference.get("logits_rmse_to_cpu"),
        "peak_gb": max(peaks, default=None),
        "demo_ok": parts.get("demo", {}).get("ok"),
        "incomplete": {n: p.get("failed") or p["skipped"] for n, p in parts.items() if {"failed", "skipped"} & set(p)},
        "versions": {name: version(name) for name in ("gtvray", "torch", "monai", "ray", "numpy", "triton")},
        "machine": {"cpus": os.cpu_count(), "python": platform.python_version()},
    }


def ratio(over: float | None, under: float | None) -> float | None:
    """Return the quotient of two values; None if either is missing or zero."""
    return round(over / under, 3) if over and under else None


if __name__ == "__main__":
    main()
