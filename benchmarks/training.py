"""Training steps per second of gtvray and nnU-Net with the same network, patch and batch; and the cost of Ray Train.

Each contestant runs in its own process, all with the same number of threads, and contestants alternate: nnU-Net's
`run_training` with its loader in a second process, gtvray's `fit`, and `fit_distributed` with one worker. All train
on the same cases, each with its own preprocessing at one spacing, with SGD and Nesterov momentum, Dice and
cross-entropy, and nnU-Net's augmentation at its probabilities. One epoch warms up and one is measured. Validation,
selection and start-up are not measured; everything else that a loop does between steps is, in gtvray the averaged
weights and the checkpoint that is written meanwhile. `data_wait_share` is the largest of gtvray's repetitions.

nnU-Net trains only in fp32 on a CPU: `ratio_same_precision` compares gtvray's fp32 with it and `ratio_best` gtvray's
bf16, both with gtvray's default of one patch per forward pass. `ratios` also has both patches in one pass (`-whole`).
nnU-Net runs as documented, with the memory defaults of the C library; much of its time in fp32 is spent in the kernel
for blocks of 32 MB and more that are allocated again in every step. gtvray keeps such blocks, which is part of the
comparison. On a processor without bf16, --fp32 omits runs that would only be emulated.

Equal work: parameters and operations of a step of both networks, and `max_abs_difference` of their logits with the same
weights. nnU-Net's two classes with softmax correspond to gtvray's one with a sigmoid. Equal output of Ray Train: the
loss equals that of the bare loop bit for bit.

`ray_train_cost_share` compares, in bf16, full epochs as the caller sees them, from report to report. Part of the cost
of Ray Train occurs once per epoch, at the report; eight steps are a short epoch, so --ray measures only this, with more
steps. `ray_workers_cost_share` is the same for as many workers as can share threads and batch evenly.

    python benchmarks/training.py --json [--fp32] [--data DATASET] [--nnunet-python /path/to/its/bin/python]
    python benchmarks/training.py --json --ray --steps 24 [--data DATASET]
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from _common import NNUNET_TRAINER

sys.path.insert(0, str(Path(__file__).parent / "peers"))
from training_nnunet import FEATURES, STRIDES, by_kind, step_cost

from gtvray.config import Config, load_config
from gtvray.data import CachedCase, CaseCache
from gtvray.datasets import index_dataset, read_label, write_phantoms
from gtvray.geometry import Box
from gtvray.io import read_volume, write_volume

SPACING_MM = (4.0, 4.0, 3.0)
SETTINGS = (
    *NNUNET_TRAINER,
    f"preprocessing.spacing_mm={list(SPACING_MM)}",
    f"network.features={list(FEATURES)}",
    f"network.strides={STRIDES}",
)
# Precision, and patches per forward pass.
OURS = {"fp32": ("fp32", "auto"), "bf16": ("bf16", "auto"), "fp32-whole": ("fp32", None), "bf16-whole": ("bf16", None)}
RAY, RAY_WORKERS, BARE = "bf16-ray-train", "bf16-ray-train-workers", "bf16"
PEER, PEER_WARMUP = "nnunet", 3
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
# Logits are of the order of one; the remaining difference comes from the order of summation.
SAME_LOGITS, SAME_COST, SAME_LOSS = 1e-3, 0.01, 1e-3
UNTOLD = ("json", "run", "work", "nnunet_python")


def main() -> None:
    """Run all contestants and print one JSON line; with --run, run as one of gtvray."""
    given = arguments()
    if given.run:
        print(json.dumps(contestant(given.run, given)))
        return
    with tempfile.TemporaryDirectory() as scratch:
        given.work = Path(scratch)
        select_cases(given)
        equal = equal_work(given)
        divided = [RAY_WORKERS] if math.gcd(given.threads, given.batch) > 1 else []
        names = [BARE, RAY, *divided] if given.ray else [*([PEER] if given.nnunet_python else []), *OURS, RAY]
        names = [name for name in names if not (given.fp32 and name.startswith("bf16"))]
        runs: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
        for _ in range(given.repeats):
            for name in names:
                runs[name].append(run_peer(given) if name == PEER else run_ours(name, given))
    print(json.dumps(report(runs, equal, given)))


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="no effect; the output is always JSON")
    parser.add_argument("--data", type=Path, help="dataset; default: phantoms")
    parser.add_argument("--cases", type=int, default=8, help="number of training cases")
    parser.add_argument("--nnunet-python", type=Path, default=os.environ.get("GTVRAY_BENCH_NNUNET"))
    part = parser.add_mutually_exclusive_group()
    part.add_argument("--ray", action="store_true", help="measure only the cost of Ray Train, with more steps")
    part.add_argument("--fp32", action="store_true", help="omit bf16, and with it the cost of Ray Train")
    parser.add_argument("--patch", type=int, default=64)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--steps", type=int, default=8, help="timed steps per repetition")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--repeats", type=int, default=3)
    for name, kind in (("--run", str), ("--work", Path)):
        parser.add_argument(name, type=kind, help=argparse.SUPPRESS)
    return parser.parse_args()


def select_cases(given: argparse.Namespace) -> None:
    """Link the training cases, and write a small part of another case for selection, so that it takes little time."""
    source = given.data
    if source is None:
        source = given.work / "phantoms"
        write_phantoms(source, given.cases + 1, 0)
    *train, last = index_dataset(source).cases[: given.cases + 1]
    for case in train:
        folder = given.work / "cases" / case.case_id
        folder.mkdir(parents=True)
        for name, file in (("data", case.image), ("label", case.label)):
            (folder / f"{name}.nii.gz").symlink_to(Path(file).resolve())
    scan = read_volume(last.image)
    label = read_label(last, scan)
    middle = np.rint(np.argwhere(label.array > 0).mean(axis=0)).astype(int)
    start = np.clip(middle - given.patch // 4, 0, None)
    box = Box(tuple(start.tolist()), tuple(np.minimum(start + given.patch // 2, scan.shape).tolist()))
    for name, volume in (("data", scan), ("label", label)):
        write_volume(given.work / "selection" / last.case_id / f"{name}.nii.gz", volume.cropped(box))


def equal_work(given: argparse.Namespace) -> dict[str, Any]:
    """Prepare the cases for both, and compare the two networks."""
    found = {"ours": run_ours("network", given), "peer": None, "same": None}
    if given.nnunet_python is None or given.ray:
        return found
    spacing = ",".join(str(mm) for mm in SPACING_MM)
    prepared = call_peer(given, "prepare", spacing, str(given.patch), str(given.batch))
    peer = call_peer(given, "network", str(given.work / "weights.npz"))
    ratios = {key: peer[key] / found["ours"][key] for key in ("parameters", "flops")}
    same = all(abs(ratio - 1) <= SAME_COST for ratio in ratios.values())
    # gtvray's loss is averaged over samples too.
    same = same and peer["max_abs_difference"] <= SAME_LOGITS and not prepared["batch_dice"]
    return {**found, "peer": {**peer, **prepared}, "ratios": ratios, "same": same}


def run_ours(name: str, given: argparse.Namespace) -> dict[str, Any]:
    """Run one contestant of gtvray in its own process."""
    figures = [f"--{key}={getattr(given, key)}" for key in ("work", "patch", "batch", "steps", "threads")]
    return child([sys.executable, __file__, "--run", name, *figures], given.threads)


def run_peer(given: argparse.Namespace) -> dict[str, Any]:
    """Run nnU-Net in its own process."""
    return call_peer(given, "train", str(PEER_WARMUP), str(given.steps))


def call_peer(given: argparse.Namespace, stage: str, *words: str) -> dict[str, Any]:
    """Run a stage of nnU-Net in its environment, with the settings for a machine with few cores."""
    script = Path(__file__).parent / "peers" / "training_nnunet.py"
    command = [str(given.nnunet_python), str(script), stage, str(given.work), *words]
    return child(command, given.threads, nnUNet_compile="f", nnUNet_n_proc_DA="1")


def child(command: list[str], threads: int, **variables: str) -> dict[str, Any]:
    """Return the last line that a contestant printed, and its elapsed time."""
    began = time.perf_counter()
    environment = {**os.environ, **dict.fromkeys(THREADS, str(threads)), **variables}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    return {**json.loads(done.stdout.splitlines()[-1]), "process_s": time.perf_counter() - began}


def contestant(name: str, given: argparse.Namespace) -> dict[str, Any]:
    """Run as a contestant of gtvray."""
    precision, micro = OURS.get(name, OURS[BARE])
    workers = math.gcd(given.threads, given.batch) if name == RAY_WORKERS else 1
    config = load_config(
        overrides=[
            *SETTINGS,
            f"training.patch_ijk={[given.patch] * 3}",
            f"training.batch_size={given.batch}",
            f"training.steps_per_epoch={given.steps}",
            f"training.num_workers={workers}",
            f"training.cpus_per_worker={given.threads // workers}",
            f"training.precision={precision}",
            f"training.micro_batch={micro or given.batch}",
        ]
    )
    train, selection = (
        CaseCache(given.work / "cache", config.preprocessing, config.cache).prepare_all(index_dataset(folder).cases)
        for folder in (given.work / "cases", given.work / "selection")
    )
    if name == "network":
        return write_network(config, given)
    with tempfile.TemporaryDirectory(dir=given.work) as folder:
        way = fit_ray if name in (RAY, RAY_WORKERS) else fit_bare
        found = way(config, train, selection, Path(folder))
    return {**found, "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def fit_bare(config: Config, train: list[CachedCase], selection: list[CachedCase], folder: Path) -> dict[str, Any]:
    """Run gtvray's loop in this process."""
    import torch

    from gtvray.training import fit

    return {**second_epoch(config, fit(config, train, selection, folder)), "threads": torch.get_num_threads()}


def fit_ray(config: Config, train: list[CachedCase], selection: list[CachedCase], folder: Path) -> dict[str, Any]:
    """Run the same in workers of Ray Train, on a separate cluster."""
    from gtvray.runtime import connect
    from gtvray.training import fit_distributed

    with connect(cpus=config.training.num_workers * config.training.cpus_per_worker):
        return second_epoch(config, fit_distributed(config, train, selection, folder))


def second_epoch(config: Config, reports: Any) -> dict[str, Any]:
    """Measurements of the second epoch: its steps alone, and the full epoch as the caller sees it."""
    told, seconds = [], []
    for each in reports:
        told.append(each)
        seconds.append(time.perf_counter())
    steps = config.training.steps_per_epoch
    return {
        "steps": steps,
        "seconds": steps * config.training.batch_size / told[-1].patches_per_s,
        "whole_s": seconds[-1] - seconds[-2],
        "data_wait_share": told[-1].data_wait_share,
        "train_loss": told[-1].train_loss,
    }


def write_network(config: Config, given: argparse.Namespace) -> dict[str, Any]:
    """Write the weights and the logits for random patches for the peer, and count the operations of a step."""
    import torch

    from gtvray.models import build_network

    torch.manual_seed(0)
    preprocessing, patch_ijk = config.preprocessing, config.training.patch_ijk
    network = build_network(config.network, preprocessing.channels, preprocessing.spacing_mm, patch_ijk)
    patches = torch.rand(given.batch, preprocessing.channels, *patch_ijk)
    cost = step_cost(network, patches)
    with torch.no_grad():
        # Normalisation layers are initialised with ones and zeros, which would hide a permutation.
        for name, parameter in network.named_parameters():
            if "norm" in name:
                parameter.add_(torch.rand_like(parameter), alpha=0.5)
        logits = network(patches)
    weights = {name: parameter.detach().numpy() for name, parameter in by_kind(network.named_parameters()).items()}
    np.savez(given.work / "weights.npz", patches=patches.numpy(), logits=logits.numpy(), **weights)
    return cost


def same_loss(runs: dict[str, list[dict[str, Any]]], name: str, within: float) -> bool | None:
    """Whether the losses of a contestant and of the bare loop agree within a share; None if one did not run."""
    if name not in runs or BARE not in runs:
        return None
    losses = [run["train_loss"] for run in (*runs[BARE], *runs[name])]
    return max(losses) - min(losses) <= within * min(losses)


def report(runs: dict[str, list[dict[str, Any]]], equal: dict[str, Any], given: argparse.Namespace) -> dict[str, Any]:
    """Results and raw measurements."""
    rates = {name: statistics.median(run["steps"] / run["seconds"] for run in many) for name, many in runs.items()}
    compared = [name for name in (BARE, RAY, RAY_WORKERS) if name in runs]
    whole = {name: statistics.median(run["whole_s"] for run in runs[name]) for name in compared}
    ratios = {name: round(rates[name] / rates[PEER], 3) if PEER in rates else None for name in rates if name != PEER}
    cost = {name: round(1 - whole[BARE] / seconds, 4) for name, seconds in whole.items()}
    return {
        "benchmark": "training",
        "ratio_same_precision": ratios.get("fp32"),
        "ratio_best": ratios.get("bf16"),
        "data_wait_share": round(max(run["data_wait_share"] for name in OURS for run in runs.get(name, [])), 4),
        "ray_train_cost_share": cost.get(RAY),
        "ray_workers_cost_share": cost.get(RAY_WORKERS),
        "ratios": ratios,
        "steps_per_s": {name: round(value, 4) for name, value in rates.items()},
        "equal_work": equal,
        "ray_same_loss": same_loss(runs, RAY, 0.0),
        "ray_workers_same_loss": same_loss(runs, RAY_WORKERS, SAME_LOSS),
        "raw": runs,
        "settings": {
            # Only the name of a path, because the folders above it are specific to this machine.
            **{key: str(getattr(value, "name", value)) for key, value in vars(given).items() if key not in UNTOLD},
            "spacing_mm": SPACING_MM,
            "ours": SETTINGS,
        },
        "versions": {name: metadata.version(name) for name in ("gtvray", "torch", "monai", "ray", "numpy")},
        "machine": {"cpus": os.cpu_count(), "threads": given.threads, "python": platform.python_version()},
    }


if __name__ == "__main__":
    main()
