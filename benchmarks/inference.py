"""One planning CT from file to mask: ours in every mode and backend, and MONAI's usual chain.

The scan is a phantom on StructSeg's grid (512 x 512 x 124 at 1.14 x 1.14 x 3 mm, with noise), or a real one given by
--scan. All contestants have the same weights: those of --model, or random ones of a small network; --large takes random
ones of nnU-Net's size (31 million parameters, patch 192 x 192 x 32), for timing alone. Each runs in a process of its
own, imports not timed. `cold` is the network's setting up and the first scan, `warm` the same scan again.

Equal output: `dice_to_peer` is between our exhaustive mask and that of MONAI's SlidingWindowInferer, Gaussian weights,
on the same prepared grid. The peers' own chains resample onto grids that differ from ours by up to a voxel;
`dice_file_to_file` tells how far that takes their masks from ours.

With --cases, a folder of cases with masks, localised inference is held against exhaustive on each of them and on
copies: padded with air, cropped at a side, mirrored, with other axes. `missed` counts tumours that exhaustive touches
and localised does not; `miss_rate_below` is the 95 % upper bound (Clopper and Pearson) that the cases, without their
copies, allow for.

`floor_ratio` is the time of the network over that of its multiplications at the speed of a large matrix product here.

    python benchmarks/inference.py --json [--model BUNDLE] [--large] [--scan FILE] [--cases DIR]
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
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from gtvray.config import InferenceConfig, NetworkConfig, PreprocessingConfig
from gtvray.geometry import Box, Volume
from gtvray.io import read_volume, sha256_of, write_volume
from gtvray.preprocessing import AIR_HU, prepare, restore_mask, to_channels

OURS = {
    "exhaustive-torch-fp32": ("exhaustive", "torch", "fp32"),
    "body-torch-fp32": ("body", "torch", "fp32"),
    "body-torch-bf16": ("body", "torch", "bf16"),
    "body-openvino-fp32": ("body", "openvino", "fp32"),
    "body-openvino-bf16": ("body", "openvino", "bf16"),
    "localised-torch-fp32": ("localised", "torch", "fp32"),
    "localised-openvino-fp32": ("localised", "openvino", "fp32"),
    "localised-openvino-bf16": ("localised", "openvino", "bf16"),
}
PEERS = ("monai",)
LARGE = (32, 64, 128, 256, 320, 320)
LARGE_PATCH, LARGE_SPACING_MM = (192, 192, 32), (1.14, 1.14, 3.0)
SAME_GRID = "monai-inferer"


def main() -> None:
    """Run everything and print one JSON line; with --run, be one contestant."""
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
        names = [name for name in OURS if given.only is None or name in given.only.split(",")]
        runs = {
            name: [child(name, given, scan, model, folder / f"{name}-{n}.nii.gz") for n in range(given.repeats)]
            for name in (*names, "monai")
        }
        same = child(SAME_GRID, given, scan, model, folder / "same.nii.gz")
        study = child("study", given, given.cases, model, folder) if given.cases else None
        speed = child("floor", given, scan, model, folder)
        figures = report(runs, Path(same["mask"]), study, speed)
        print(json.dumps({**figures, **facts(given, scan)}))


def arguments() -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="accepted for uniformity; JSON is all that is printed")
    parser.add_argument("--model", type=Path, help="a bundle's folder; random weights otherwise")
    parser.add_argument("--large", action="store_true", help="random weights of nnU-Net's size")
    parser.add_argument("--scan", type=Path, help="a CT; a phantom otherwise")
    parser.add_argument("--cases", type=Path, help="a dataset with masks, for localised against exhaustive")
    parser.add_argument("--most", type=int, default=40, help="of them")
    parser.add_argument("--only", help="contestants of ours, with commas")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--repeats", type=int, default=3)
    for name in ("--run", "--out"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    return parser.parse_args()


def child(name: str, given: argparse.Namespace, scan: Path, model: Path, out: Path) -> dict[str, Any]:
    """One contestant in a process of its own; an error is told and not hidden."""
    command = [sys.executable, __file__, "--run", name, "--scan", str(scan), "--model", str(model), "--out", str(out)]
    command += ["--threads", str(given.threads), "--most", str(given.most)] + (["--large"] if given.large else [])
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        return {"failed": name}
    return dict(json.loads(done.stdout.splitlines()[-1]))


def contestant(given: argparse.Namespace) -> dict[str, Any]:
    """What a child does."""
    import torch

    torch.set_num_threads(given.threads)
    out = Path(given.out)
    if given.run == "model":
        return write_random(out, large=given.large)
    if given.run == "floor":
        return floor(given.model)
    if given.run == "study":
        return study_cases(given)
    run = {"monai": run_monai, SAME_GRID: run_same_grid}.get(given.run, run_ours)
    result = run(given, out)
    return {**result, "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, "mask": str(out)}


def write_random(folder: Path, *, large: bool) -> dict[str, Any]:
    """A bundle with random weights, whose answers are stretched about the threshold."""
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


def bundle_of(folder: Path, **inference: Any) -> Any:
    """The bundle with other inference settings."""
    from gtvray.models import Bundle

    bundle = Bundle.load(folder)
    return replace(bundle, inference=bundle.inference.model_copy(update=inference))


def run_ours(given: argparse.Namespace, out: Path) -> dict[str, Any]:
    """Our path from file to file, twice."""
    from gtvray.inference import LocalCases, Predictor

    mode, backend, precision = OURS[given.run]
    began = time.perf_counter()
    bundle = bundle_of(given.model, mode=mode, backend=backend, precision=precision)
    cases = LocalCases(Predictor(bundle, threads=given.threads), lambda _: out)
    found, seconds = [], []
    for _ in range(2):
        found.append(cases.store(given.scan, cases.run(cases.load(given.scan))))
        seconds.append(time.perf_counter() - began)
        began = time.perf_counter()
    coverage = found[1].coverage
    return {
        "cold_s": seconds[0],
        "warm_s": seconds[1],
        "stages_s": found[1].seconds,
        "mode": coverage.mode,
        "fallback": coverage.fallback,
        "patches": coverage.patches,
        "volume_skipped_share": coverage.volume_skipped_share,
    }


def run_monai(given: argparse.Namespace, out: Path) -> dict[str, Any]:
    """MONAI's usual chain from file to file, twice."""
    import torch
    from monai import transforms
    from monai.inferers import SlidingWindowInferer

    began = time.perf_counter()
    bundle = bundle_of(given.model)
    network, window = bundle.build_network(), bundle.preprocessing.windows_hu[0]
    size, overlap = bundle.inference.batch_size, bundle.inference.overlap
    inferer = SlidingWindowInferer(bundle.patch_ijk, size, overlap=overlap, mode="gaussian")
    chain = transforms.Compose(
        [
            transforms.LoadImage(ensure_channel_first=True),
            transforms.Orientation("RAS", labels=None),
            transforms.Spacing(bundle.preprocessing.spacing_mm, mode="bilinear"),
            transforms.ScaleIntensityRange(*window, 0.0, 1.0, clip=True),
        ]
    )
    seconds = []
    for _ in range(2):
        image = chain(str(given.scan))
        with torch.inference_mode():
            logits = inferer(image[None], network)[0, :1]
        # Taken back through the resampling and the axes, as Invertd does it, linearly.
        probability = chain.inverse(
            type(image)(torch.sigmoid(logits), meta=image.meta, applied_operations=image.applied_operations)
        )
        mask = (probability[0] > bundle.inference.threshold).numpy().astype(np.uint8)
        write_volume(out, Volume(mask, np.asarray(probability.affine)))
        seconds.append(time.perf_counter() - began)
        began = time.perf_counter()
    return {"cold_s": seconds[0], "warm_s": seconds[1]}


def run_same_grid(given: argparse.Namespace, out: Path) -> dict[str, Any]:
    """MONAI's inferer between our preparing and our way back: what differs is the sliding window alone."""
    import torch
    from monai.inferers import SlidingWindowInferer

    bundle = bundle_of(given.model)
    network, settings = bundle.build_network(), bundle.inference
    prepared = prepare(read_volume(given.scan), bundle.preprocessing)
    channels = torch.from_numpy(to_channels(prepared.hu.array, bundle.preprocessing.windows_hu, prepared.mirrored))[
        None
    ]
    inferer = SlidingWindowInferer(bundle.patch_ijk, settings.batch_size, overlap=settings.overlap, mode="gaussian")
    with torch.inference_mode():
        probability = inferer(channels, lambda patches: torch.sigmoid(network(patches)))[0, 0].numpy()
    write_volume(out, restore_mask(probability, prepared, settings.threshold))
    return {}


def floor(model: Path) -> dict[str, Any]:
    """Multiply-adds of one patch, and how fast this machine does them in a large matrix product."""
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


def study_cases(given: argparse.Namespace) -> dict[str, Any]:
    """Localised against exhaustive on cases and their copies."""
    from gtvray.data import index_dataset, read_label
    from gtvray.evaluation import dice
    from gtvray.inference import Predictor

    whole, near = (
        Predictor(bundle_of(given.model, mode=mode), threads=given.threads) for mode in ("exhaustive", "localised")
    )
    rows = []
    for case in index_dataset(given.scan).cases[: given.most]:
        scan = read_volume(case.image)
        for kind, (copy, label) in copies(scan, read_label(case, scan)).items():
            job = near.begin(copy, mask_only=True)
            near.run(job)
            masks = whole.predict(copy), job.finish()
            rows.append(
                {
                    "case": case.case_id,
                    "copy": kind,
                    "dsc": [dice(label.array > 0, mask.array > 0) for mask in masks],
                    "missed": tumours_touched(label, masks[0]) - tumours_touched(label, masks[1]),
                    "fallback": job.coverage().fallback,
                    "patches": job.patches,
                }
            )
    return {"rows": rows}


def copies(scan: Volume, label: Volume) -> dict[str, tuple[Volume, Volume]]:
    """The case, and what may become of it on its way to us."""
    n = scan.shape
    wide = Box((-20, -9, -4), (n[0] + 5, n[1] + 30, n[2] + 11))
    part = Box((n[0] // 8, 0, n[2] // 6), (n[0], n[1] - n[1] // 10, n[2]))
    pair = (scan, label)
    padded = (scan.padded(wide, AIR_HU), label.padded(wide, 0))
    cropped = (scan.cropped(part), label.cropped(part))
    return {
        "as it is": pair,
        "padded": padded,
        "cropped": cropped,
        "mirrored": tuple_of(volume.with_array(volume.array[::-1]) for volume in pair),
        "other axes": tuple_of(volume.reoriented("IPR") for volume in pair),
    }


def tuple_of(volumes: Any) -> tuple[Volume, Volume]:
    """Scan and label."""
    scan, label = volumes
    return scan, label


def tumours_touched(label: Volume, mask: Volume) -> int:
    """Components of the label that a mask touches."""
    import cc3d

    parts = cc3d.connected_components(np.ascontiguousarray(label.array > 0), connectivity=26)
    return len(set(np.unique(parts[mask.array > 0]).tolist()) - {0})


def dice_of_files(one: Path, other: Path) -> float:
    """Of two masks on one grid."""
    from gtvray.evaluation import dice

    a, b = (read_volume(path).array > 0 for path in (one, other))
    return dice(a, b)


def report(
    runs: dict[str, list[dict[str, Any]]], same: Path, study: dict[str, Any] | None, speed: dict[str, Any]
) -> dict[str, Any]:
    """The figures, with everything they come from; null is what was not run."""
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
    exhaustive = next((name for name in ours if name.startswith("exhaustive")), None)
    peers = [name for name in PEERS if name in sound]

    def ratio(peer: str, name: str | None, of: dict[str, float], by: dict[str, float]) -> float | None:
        return round(by[peer] / of[name], 2) if name and peer in sound else None

    stages = runs[body][0]["stages_s"] if body else {}
    floor_s = runs[body][0]["patches"] * speed["patch_flops"] / speed["peak_flops_per_s"] if body else None
    return {
        "benchmark": "inference",
        "ratio_monai": ratio("monai", body, warm, warm),
        # There is no contestant of nnU-Net yet.
        "ratio_nnunet": None,
        "ratio_exhaustive_monai": ratio("monai", exhaustive, warm, warm),
        "dice_to_peer": round(dice_of_files(mask[exhaustive], same), 5) if exhaustive else None,
        "dice_file_to_file": {
            peer: round(dice_of_files(mask[exhaustive], mask[peer]), 4) for peer in peers if exhaustive
        },
        "ratio_localised_cold": ratio("monai", near, cold, cold),
        "ratio_localised_warm": ratio("monai", near, warm, warm),
        **(study_figures(study["rows"]) if study else {"worst_case_drop": None, "missed": None}),
        "peak_mb": round(max(peak[name] for name in ours)) if ours else None,
        "peer_peak_mb": round(min(peak[name] for name in peers)) if peers else None,
        "floor_ratio": round(stages["network"] / floor_s, 2) if floor_s else None,
        "export_share": round((stages["restore"] + stages["write"]) / sum(stages.values()), 4) if stages else None,
        "best_body": body,
        "best_localised": near,
        "stages_s": {name: runs[name][0]["stages_s"] for name in ours},
        "failed": sorted(set(runs) - set(sound)),
        "mask_sha256": {name: sha256_of(path) for name, path in mask.items()},
        "speed": speed,
        "study": study,
        "raw": runs,
    }


def facts(given: argparse.Namespace, scan: Path) -> dict[str, Any]:
    """What was measured, with what, and where."""
    return {
        "scan_sha256": sha256_of(scan),
        "large": given.large,
        "weights": "random" if given.model is None else "of --model",
        "versions": {name: version(name) for name in ("gtvray", "torch", "monai", "openvino", "numpy")},
        "machine": {"cpus": os.cpu_count(), "threads": given.threads, "python": platform.python_version()},
    }


def study_figures(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """What localising costs in quality, and how much of it so many cases could have hidden."""
    cases = {row["case"] for row in rows}
    missed = {row["case"] for row in rows if row["missed"] > 0 and row["copy"] == "as it is"}
    bound = stats.beta.ppf(0.95, len(missed) + 1, len(cases) - len(missed)) if len(missed) < len(cases) else 1.0
    return {
        "worst_case_drop": round(max(row["dsc"][0] - row["dsc"][1] for row in rows), 4),
        "missed": sum(max(0, row["missed"]) for row in rows),
        "miss_rate_below": round(float(bound), 4),
        "cases": len(cases),
        "copies": len(rows) - len(cases),
        "fallbacks": sum(row["fallback"] is not None for row in rows),
    }


def version(name: str) -> str | None:
    """Of an installed package."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


if __name__ == "__main__":
    main()
