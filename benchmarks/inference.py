"""One planning CT from file to mask: gtvray in every mode and backend, MONAI's usual pipeline, nnU-Net's predictor.

The scan is a phantom on the StructSeg grid (512 x 512 x 124 at 1.14 x 1.14 x 3 mm, with noise), or a real one given by
--scan. All contestants have the same weights: those of --model, or random ones of a small network; --large uses random
weights of a network of nnU-Net's size (31 million parameters, patch 192 x 192 x 32) for timing only: its masks are not
compared. Each contestant runs in its own process, imports not timed. `cold` is the setup of the network and the first
scan, `warm` the same scan again; with --once, the peers and mode exhaustive process the scan once, which counts as
both. The model is one network without mirror averaging, which the peers do not have. nnU-Net runs without flips, with
the Python of --nnunet-python; without that option its results are null.

Equal output: `dice_to_monai` and `dice_to_nnunet` compare gtvray's exhaustive mask with that of the peer's sliding
window with Gaussian weights on the same prepared grid of the full scan, both restored by gtvray, with
`inference.sliding_window` set to the peer's rule; `dice_to_nnunet_fp32` is the same with nnU-Net's sums over patches in
single instead of half precision. Peers position and weight patches differently; `dice_between_peers` measures the
effect. The peers' own pipelines resample to grids that differ from gtvray's by up to a voxel; `dice_file_to_file`
measures how much their masks differ from gtvray's for that reason.

With --cases, a folder of cases with masks, localised inference is compared with exhaustive, and exhaustive with
`body`, on each case and on copies: padded with air, cropped at a side, mirrored, with other axes, rotated, noisy.
`missed` counts tumours that exhaustive touches and localised does not; `miss_rate_below` is the 95 % upper bound
(Clopper-Pearson) for the number of cases without copies. `rank_correlation_doubt` and
`rank_correlation_views_dice` are Spearman correlations, over the cases, of the DSC with the uncertainty score and with
the agreement of two views, one of them mirrored, as reported by `gtvray predict --uncertainty`. `auroc_entropy` is the
area under the curve with which voxel entropy separates wrong from correct voxels of the body around the mask, mean over
the cases, and `auroc_entropy_marked` the same within the mask; `noise` is the change of DSC and uncertainty when noise
is added to the same scan.

`floor_ratio` is the time of the network divided by the time of its multiplications at the speed of a large matrix
product on this machine, for the fastest contestant in mode body that computes in fp32, as that product does.

    python benchmarks/inference.py --json [--model BUNDLE] [--large] [--scan FILE] [--cases DIR]
        [--nnunet-python /path/to/its/bin/python]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from _common import version
from _inference_study import bundle_of, study_cases, study_figures

from gtvray.config import InferenceConfig, NetworkConfig, PreprocessingConfig
from gtvray.io import sha256_of

WHOLE = {"monai": "exhaustive-torch-fp32", "nnunet": "exhaustive-nnunet-torch-fp32"}
OURS = {
    WHOLE["monai"]: ("exhaustive", "torch", "fp32"),
    WHOLE["nnunet"]: ("exhaustive", "torch", "fp32"),
    "body-torch-fp32": ("body", "torch", "fp32"),
    "body-torch-bf16": ("body", "torch", "bf16"),
    "body-openvino-fp32": ("body", "openvino", "fp32"),
    "body-openvino-bf16": ("body", "openvino", "bf16"),
    "localised-torch-fp32": ("localised", "torch", "fp32"),
    "localised-openvino-fp32": ("localised", "openvino", "fp32"),
    "localised-openvino-bf16": ("localised", "openvino", "bf16"),
}
PEERS = ("monai", "nnunet")
LARGE = (32, 64, 128, 256, 320, 320)
LARGE_PATCH, LARGE_SPACING_MM = (192, 192, 32), (1.14, 1.14, 3.0)
# Only the sliding windows of the peers, on gtvray's grid; nnU-Net's also with sums in single precision.
SAME_GRID = {"monai": "monai-inferer", "nnunet": "nnunet-inferer", "nnunet_fp32": "nnunet-inferer-fp32"}


def main() -> None:
    """Run all contestants and print one JSON line; with --run, run as one contestant."""
    given = arguments()
    if given.run:
        print(json.dumps(contestant(given)))
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        scan = given.scan or folder / "case" / "data.nii.gz"
        model = given.model or folder / "model"
        if given.scan is None:
            command = [sys.executable, str(Path(__file__).with_name("preparing.py")), "--run", "case", "--case"]
            subprocess.run([*command, str(scan.parent)], check=True)
        if given.model is None:
            child("model", given, scan, model, model)
        peers = [name for name in PEERS if name != "nnunet" or given.nnunet_python]
        ours = [name for name in OURS if given.only is None or name in given.only.split(",")]
        ours = [name for name in ours if name != WHOLE["nnunet"] or "nnunet" in peers]
        whole = [*peers, *(name for name in ours if name.startswith("exhaustive"))]
        rest = [name for name in ours if name not in whole]
        if "nnunet" in peers:
            child("nnunet-job", given, scan, model, folder / "job")
        runs = {
            name: [child(name, given, scan, model, folder / f"{name}-{n}.nii.gz") for n in range(times)]
            for names, times in ((whole, given.peer_repeats), (rest, given.repeats))
            for name in names
        }
        same: dict[str, dict[str, Any]] = {}
        if not given.large:
            asked = [name for name in SAME_GRID if name.partition("_")[0] in peers]
            same = {name: child(SAME_GRID[name], given, scan, model, folder / f"same-{name}.nii.gz") for name in asked}
        study = child("study", given, given.cases, model, folder) if given.cases else None
        speed = child("floor", given, scan, model, folder)
        print(json.dumps({**report(runs, same, study, speed), **facts(given, scan)}))


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="no effect; the output is always JSON")
    parser.add_argument("--model", type=Path, help="bundle folder; default: random weights")
    parser.add_argument("--large", action="store_true", help="random weights of a network of nnU-Net's size")
    parser.add_argument("--once", action="store_true", help="run the peers and mode exhaustive once")
    parser.add_argument("--scan", type=Path, help="a CT; default: a phantom")
    parser.add_argument("--cases", type=Path, help="dataset with masks, to compare localised with exhaustive")
    parser.add_argument("--most", type=int, default=40, help="of them")
    parser.add_argument("--copied", type=int, default=40, help="number of cases whose copies are evaluated too")
    parser.add_argument("--only", help="configurations of gtvray, separated by commas")
    parser.add_argument("--nnunet-python", type=Path, default=os.environ.get("GTVRAY_BENCH_NNUNET"))
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--peer-repeats", type=int, default=1, help="repetitions of these, which take minutes")
    for name in ("--run", "--out"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    return parser.parse_args()


def child(name: str, given: argparse.Namespace, scan: Path, model: Path, out: Path) -> dict[str, Any]:
    """Run one contestant in its own process; errors are reported."""
    command = [sys.executable, __file__, "--run", name, "--scan", str(scan), "--model", str(model), "--out", str(out)]
    command += [*(part for name in ("threads", "most", "copied") for part in (f"--{name}", str(getattr(given, name))))]
    command += [f"--{name}" for name in ("large", "once") if getattr(given, name)]
    job = out.parent / "job"
    if name == "nnunet":
        return nnunet_child(name, given, job, ["file", scan, out])
    if name in (SAME_GRID["nnunet"], SAME_GRID["nnunet_fp32"]):
        way = "grid" if name == SAME_GRID["nnunet"] else "grid-fp32"
        found = nnunet_child(name, given, job, [way, job / "channels.npy", job / "probability.npy"])
        # Of the two processes, only that of nnU-Net is reported; the other makes the mask.
        return found if "failed" in found else {**ended(name, command), **found}
    return ended(name, command)


def nnunet_child(name: str, given: argparse.Namespace, job: Path, what: list[Any]) -> dict[str, Any]:
    """Run nnU-Net in its own environment, with the same number of processes and threads as the others."""
    script = Path(__file__).parent / "peers" / "inference_nnunet.py"
    command = [given.nnunet_python, script, job, given.threads, *what]
    folders = {f"nnUNet_{key}": str(job) for key in ("raw", "preprocessed", "results")}
    return ended(name, [*map(str, command)], {"nnUNet_def_n_proc": str(given.threads), **folders})


def ended(name: str, command: list[str], environment: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Return the last line that a process printed."""
    done = subprocess.run(
        command, stdout=subprocess.PIPE, text=True, check=False, env={**os.environ, **(environment or {})}
    )
    return {"failed": name} if done.returncode else dict(json.loads(done.stdout.splitlines()[-1]))


def contestant(given: argparse.Namespace) -> dict[str, Any]:
    """Run as one contestant."""
    import torch

    torch.set_num_threads(given.threads)
    out = Path(given.out)
    if given.run == "model":
        return write_random(out, large=given.large)
    if given.run == "floor":
        return floor(given.model)
    if given.run == "study":
        return study_cases(given)
    # The parent does not load torch or MONAI, because Linux counts its peak memory as that of its children.
    from peers import inference_monai, nnunet_job

    runs = {
        "monai": inference_monai.run_chain,
        SAME_GRID["monai"]: inference_monai.run_same_grid,
        "nnunet-job": nnunet_job.write_job,
        SAME_GRID["nnunet"]: nnunet_job.restore_job,
        SAME_GRID["nnunet_fp32"]: nnunet_job.restore_job,
    }
    result = runs.get(given.run, run_ours)(given, out)
    return {**result, "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, "mask": str(out)}


def write_random(folder: Path, *, large: bool) -> dict[str, Any]:
    """Write a bundle with random weights."""
    import torch

    from gtvray.models import build_network, weights_of, write_bundle

    torch.manual_seed(0)
    preprocessing = PreprocessingConfig(spacing_mm=LARGE_SPACING_MM) if large else PreprocessingConfig()
    network = NetworkConfig(features=LARGE) if large else NetworkConfig()
    patch_ijk = LARGE_PATCH if large else (48, 48, 48)
    built = build_network(network, 1, preprocessing.spacing_mm, patch_ijk)
    write_bundle(
        folder,
        weights=weights_of(built),
        preprocessing=preprocessing,
        network=network,
        inference=InferenceConfig(batch_size=1 if large else 2),
        patch_ijk=patch_ijk,
        info={},
    )
    return {"parameters": sum(parameter.numel() for parameter in built.parameters())}


def run_ours(given: argparse.Namespace, out: Path) -> dict[str, Any]:
    """Run gtvray from file to file, twice."""
    from gtvray.inference import LocalCases, Predictor

    mode, backend, precision = OURS[given.run]
    rule = "nnunet" if given.run == WHOLE["nnunet"] else "monai"
    began = time.perf_counter()
    settings = {"mode": mode, "backend": backend, "precision": precision, "sliding_window": rule}
    bundle = bundle_of(given.model, **settings, keep_largest=False)
    cases = LocalCases(Predictor(bundle, threads=given.threads), lambda _: out, overwrite=True)
    found, seconds = [], []
    for _ in range(1 if given.once and mode == "exhaustive" else 2):
        found.append(cases.store(given.scan, cases.run(cases.load(given.scan))))
        seconds.append(time.perf_counter() - began)
        began = time.perf_counter()
    coverage = found[-1].coverage
    return {
        "cold_s": seconds[0],
        "warm_s": seconds[-1],
        "stages_s": found[-1].seconds,
        "mode": coverage.mode,
        "fallback": coverage.fallback,
        "patches": coverage.patches,
        "volume_skipped_share": coverage.volume_skipped_share,
    }


def floor(model: Path) -> dict[str, Any]:
    """Multiply-adds of one patch, and their rate in a large matrix product on this machine."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    bundle = bundle_of(model)
    patch = torch.zeros((1, bundle.preprocessing.channels, *bundle.patch_ijk))
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        bundle.build_network()(patch)
    n, best = 2048, float("inf")
    a, b = torch.rand(n, n), torch.rand(n, n)
    for _ in range(8):
        began = time.perf_counter()
        a @ b
        best = min(best, time.perf_counter() - began)
    return {"patch_flops": counter.get_total_flops(), "peak_flops_per_s": 2 * n**3 / best}


def dice_of_files(one: Path, other: Path) -> float:
    """Dice of two masks on one grid."""
    from gtvray.datasets import read_binary
    from gtvray.evaluation import dice

    a, b = (read_binary(path).array > 0 for path in (one, other))
    return dice(a, b)


def report(
    runs: dict[str, list[dict[str, Any]]],
    same: dict[str, dict[str, Any]],
    study: dict[str, Any] | None,
    speed: dict[str, Any],
) -> dict[str, Any]:
    """Results and raw measurements; null for what was not run."""
    sound = {name: found for name, found in runs.items() if not any("failed" in run for run in found)}
    cold, warm = (
        {name: statistics.median(run[key] for run in found) for name, found in sound.items()}
        for key in ("cold_s", "warm_s")
    )
    peak = {name: max(run["peak_mb"] for run in found) for name, found in sound.items()}
    mask = {name: Path(found[0]["mask"]) for name, found in sound.items()}
    ours = [name for name in sound if name in OURS]
    body = min((name for name in ours if name.startswith("body")), key=warm.__getitem__, default=None)
    near = min((name for name in ours if name.startswith("localised")), key=warm.__getitem__, default=None)
    exhaustive = {peer: name for peer, name in WHOLE.items() if name in sound}
    peers = [name for name in PEERS if name in sound]

    def ratio(peer: str, name: str | None, of: dict[str, float]) -> float | None:
        return round(of[peer] / of[name], 2) if name in sound and peer in sound else None

    stages = runs[body][0]["stages_s"] if body else {}
    return {
        "benchmark": "inference",
        "ratio_monai": ratio("monai", body, warm),
        "ratio_nnunet": ratio("nnunet", body, warm),
        "ratio_body_fp32": ratio("monai", "body-torch-fp32", warm),
        "ratio_body_fp32_nnunet": ratio("nnunet", "body-torch-fp32", warm),
        **{f"ratio_exhaustive_{peer}": ratio(peer, exhaustive.get(peer), warm) for peer in PEERS},
        **same_grid_dice({peer: mask[name] for peer, name in exhaustive.items()}, same),
        "dice_file_to_file": {
            peer: round(dice_of_files(mask[exhaustive[peer]], mask[peer]), 4) for peer in peers if peer in exhaustive
        },
        "ratio_localised_cold": ratio("monai", near, cold),
        "ratio_localised_warm": ratio("monai", near, warm),
        **(study_figures(study["rows"]) if study else {"worst_case_drop": None, "missed": None}),
        "peak_mb": round(max(peak[name] for name in ours)) if ours else None,
        "peer_peak_mb": round(min(peak[name] for name in peers)) if peers else None,
        **floor_figures({name: sound[name] for name in ours if name.startswith("body")}, speed),
        "export_share": round((stages["restore"] + stages["write"]) / sum(stages.values()), 4) if stages else None,
        "best_body": body,
        "best_localised": near,
        "patches": {name: found[0]["patches"] for name, found in sound.items()},
        "stages_s": {name: runs[name][0]["stages_s"] for name in ours},
        "failed": sorted(set(runs) - set(sound)) + sorted(SAME_GRID[name] for name in same if "failed" in same[name]),
        "mask_sha256": {name: sha256_of(path) for name, path in mask.items()},
        "speed": speed,
        "study": study,
        "same_grid": {name: told(run) for name, run in same.items()},
        "raw": {name: [told(run) for run in found] for name, found in runs.items()},
    }


def told(run: dict[str, Any]) -> dict[str, Any]:
    """Return the measurements of a run without the path of its mask."""
    return {key: value for key, value in run.items() if key != "mask"}


def same_grid_dice(ours: dict[str, Path], same: dict[str, dict[str, Any]]) -> dict[str, float | None]:
    """Dice of each peer's mask with gtvray's on the same grid, the lower one, and of the two peers."""
    masks = {peer: Path(run["mask"]) for peer, run in same.items() if "failed" not in run}
    found = {
        peer: round(dice_of_files(ours[peer.partition("_")[0]], mask), 5)
        for peer, mask in masks.items()
        if peer.partition("_")[0] in ours
    }
    both = [masks[peer] for peer in PEERS if peer in masks]
    return {
        **{f"dice_to_{peer}": found.get(peer) for peer in SAME_GRID},
        "dice_to_peer": min((found[peer] for peer in PEERS if peer in found), default=None),
        "dice_between_peers": round(dice_of_files(*both), 5) if len(both) == len(PEERS) else None,
    }


def floor_figures(bodies: dict[str, list[dict[str, Any]]], speed: dict[str, Any]) -> dict[str, Any]:
    """Time of the network divided by that of its multiplications, for the fastest contestant in fp32."""
    seconds = {
        name: statistics.median(run["stages_s"]["network"] for run in found)
        for name, found in bodies.items()
        if name.endswith("fp32")
    }
    best = min(seconds, key=seconds.__getitem__, default=None)
    if best is None or "failed" in speed:
        return {"floor_ratio": None, "floor_contestant": best}
    floor_s = bodies[best][0]["patches"] * speed["patch_flops"] / speed["peak_flops_per_s"]
    return {"floor_ratio": round(seconds[best] / floor_s, 2), "floor_contestant": best}


def facts(given: argparse.Namespace, scan: Path) -> dict[str, Any]:
    """Input, versions and machine."""
    return {
        "scan_sha256": sha256_of(scan),
        "large": given.large,
        "once": given.once,
        "weights": "random" if given.model is None else "of --model",
        "versions": {name: version(name) for name in ("gtvray", "torch", "monai", "openvino", "numpy")},
        "machine": {"cpus": os.cpu_count(), "threads": given.threads, "python": platform.python_version()},
    }


if __name__ == "__main__":
    main()
