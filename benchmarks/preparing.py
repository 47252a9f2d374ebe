"""One planning CT from its file to a prepared case on disk: gtvray, nnU-Net's preprocessor, MONAI's usual pipeline.

The case is 512 x 512 x 124 voxels at 1.14 x 1.14 x 3 mm: a phantom magnified until it fills the field of view (so that
cropping saves no more than on a scan with shoulders), or a real case given by --data, resampled to that grid.
Scanner-like noise is added to both, because smooth voxels would compress too well.

Each contestant runs in its own process, imports not timed, and writes the case as it does for training: gtvray's cache,
nnU-Net's .b2nd files, MONAI's PersistentDataset. gtvray uses cubic splines against nnU-Net and linear interpolation
against MONAI, both without antialiasing, as the peers do.

Equal output: peers choose grids that differ from gtvray's by up to a voxel, so gtvray resamples to exactly the peer's
voxel centres, through the same code as in `prepare`; `hu_rmse_body` is the larger of the two root mean squares.
`cache_is_path` states whether the cached case equals the output of that code on gtvray's own grid.

    python benchmarks/preparing.py --json [--data CASE] [--nnunet-python /path/to/its/bin/python]
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
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from gtvray.config import CacheConfig, PreprocessingConfig
from gtvray.geometry import Box, Volume, resample_to_grid
from gtvray.io import read_volume, sha256_of, write_volume
from gtvray.preprocessing import AIR_HU

SHAPE = (512, 512, 124)
SPACING_MM = (1.14, 1.14, 3.0)
NOISE_HU = 12.0
TOP_HU = 3071
BODY_HU = -400.0
PEERS = {"nnunet": "cubic", "monai": "linear"}


def main() -> None:
    """Run all contestants and print one JSON line; with --run, run as one contestant."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="no effect; the output is always JSON")
    parser.add_argument("--data", type=Path, help="case folder with data.nii.gz and label.nii.gz")
    parser.add_argument("--spacing-mm", default="1.0,1.0,2.5", help="target spacing i,j,k")
    parser.add_argument("--nnunet-python", type=Path, default=os.environ.get("GTVRAY_BENCH_NNUNET"))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--run", choices=("case", "linear", "cubic", "monai"), help=argparse.SUPPRESS)
    parser.add_argument("--case", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    spacing_mm = tuple(float(value) for value in given.spacing_mm.split(","))
    if given.run == "case":
        make_case(given.case, given.data)
        return
    if given.run:
        contestant = run_monai if given.run == "monai" else run_ours
        print(json.dumps(contestant(given.case, given.out, spacing_mm, given.run)))
        return
    with tempfile.TemporaryDirectory() as scratch:
        case = Path(scratch) / "set" / "1"
        # Also in its own process, because Linux counts the peak memory of a parent as that of its child.
        source = ["--data", str(given.data)] if given.data else []
        subprocess.run([sys.executable, __file__, "--run", "case", "--case", str(case), *source], check=True)
        runs = {
            name: [contest(name, case, Path(scratch) / f"{name}-{n}", given) for n in range(given.repeats)]
            for name in ("cubic", "linear", "monai", "nnunet")
            if name != "nnunet" or given.nnunet_python
        }
        print(json.dumps(report(runs, case, spacing_mm)))


def make_case(folder: Path, source: Path | None) -> None:
    """Write data.nii.gz and label.nii.gz on the benchmark's grid."""
    affine = np.diag([-SPACING_MM[0], -SPACING_MM[1], SPACING_MM[2], 1.0])
    if source is None:
        from gtvray.datasets.phantoms import make_phantom

        scan, mask = make_phantom(0, 0)
        # Magnified so that the phantom fills the field of view.
        wide = np.multiply(SHAPE, SPACING_MM) / scan.shape
        scan, mask = (
            Volume(volume.reoriented("LPS").array, np.diag([*-wide[:2], wide[2], 1.0])) for volume in (scan, mask)
        )
    else:
        scan, mask = (read_volume(source / f"{name}.nii.gz") for name in ("data", "label"))
    centre = np.diag(affine)[:3] * (np.array(SHAPE) - 1) / 2
    affine[:3, 3] = scan.center_mm() - centre
    hu = resample_to_grid(scan, affine, SHAPE, order=1, fill=AIR_HU).array
    noise = np.random.default_rng(0).standard_normal(SHAPE, np.float32) * NOISE_HU
    hu = np.clip(np.rint(hu + noise), AIR_HU, TOP_HU).astype(np.int16)
    soft = mask.with_array((mask.array > 0).astype(np.float32))
    label = resample_to_grid(soft, affine, SHAPE, order=1, fill=0).array >= 0.5
    write_volume(folder / "data.nii.gz", Volume(hu, affine))
    write_volume(folder / "label.nii.gz", Volume(label.astype(np.uint8), affine))


def contest(name: str, case: Path, out: Path, given: argparse.Namespace) -> dict[str, Any]:
    """Run one contestant in one process."""
    out.mkdir()
    if name == "nnunet":
        script = Path(__file__).parent / "peers" / "preparing_nnunet.py"
        command = [str(given.nnunet_python), str(script), str(case), str(out), given.spacing_mm]
    else:
        where = ["--case", str(case), "--out", str(out), "--spacing-mm", given.spacing_mm]
        command = [sys.executable, __file__, "--run", name, *where]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return {**json.loads(done.stdout.splitlines()[-1]), "out": str(out)}


def settings(spacing_mm: tuple[float, ...], interpolation: str) -> PreprocessingConfig:
    """Return gtvray's settings with the peer's interpolation."""
    return PreprocessingConfig(spacing_mm=spacing_mm, antialias=False, interpolation=interpolation)


def run_ours(case: Path, out: Path, spacing_mm: tuple[float, ...], interpolation: str) -> dict[str, Any]:
    """Prepare into gtvray's cache."""
    from gtvray.data import CaseCache
    from gtvray.datasets import index_dataset

    cache = CaseCache(out / "cache", settings(spacing_mm, interpolation), CacheConfig())
    began, busy = time.perf_counter(), time.process_time()
    (found,) = index_dataset(case.parent).cases
    cached = cache.prepare(found)
    seconds, cpu_s = time.perf_counter() - began, time.process_time() - busy
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    hu, mask = cached.read(Box.whole(cached.shape))
    np.save(out / "hu.npy", hu)
    return {
        "seconds": seconds,
        "cpu_s": cpu_s,
        "peak_mb": peak_mb,
        "shape": cached.shape,
        "affine": cached.meta["affine"],
        "tumour_ml": float(mask.sum() * np.prod(spacing_mm) / 1000),
        "bytes": sum(file.stat().st_size for file in cached.folder.iterdir()),
    }


def run_monai(case: Path, out: Path, spacing_mm: tuple[float, ...], _: str) -> dict[str, Any]:
    """Prepare with MONAI's usual pipeline into its PersistentDataset."""
    from monai import transforms
    from monai.data import PersistentDataset

    keys = ["image", "label"]
    chain = transforms.Compose(
        [
            transforms.LoadImaged(keys),
            transforms.EnsureChannelFirstd(keys),
            transforms.Orientationd(keys, axcodes="RAS", labels=None),
            transforms.CropForegroundd(keys, source_key="image", select_fn=_body, margin=6, allow_smaller=True),
            transforms.Spacingd(keys, pixdim=spacing_mm, mode=("bilinear", "nearest")),
            transforms.ScaleIntensityRanged("image", a_min=AIR_HU, a_max=TOP_HU, b_min=0.0, b_max=1.0, clip=True),
        ]
    )
    files = {"image": str(case / "data.nii.gz"), "label": str(case / "label.nii.gz")}
    dataset = PersistentDataset([files], chain, cache_dir=out / "cache")
    began, busy = time.perf_counter(), time.process_time()
    sample = dataset[0]
    seconds, cpu_s = time.perf_counter() - began, time.process_time() - busy
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    image = sample["image"]
    np.save(out / "hu.npy", np.asarray(image[0]) * (TOP_HU - AIR_HU) + AIR_HU)
    return {
        "seconds": seconds,
        "cpu_s": cpu_s,
        "peak_mb": peak_mb,
        "shape": tuple(image.shape[1:]),
        "affine": np.asarray(image.affine).tolist(),
    }


def _body(image: Any) -> Any:
    return image > BODY_HU


def report(runs: dict[str, list[dict[str, Any]]], case: Path, spacing_mm: tuple[float, ...]) -> dict[str, Any]:
    """Results and raw measurements."""
    scan = read_volume(case / "data.nii.gz")
    middle = {name: statistics.median(run["seconds"] for run in found) for name, found in runs.items()}
    peak = {name: max(run["peak_mb"] for run in found) for name, found in runs.items()}
    rmse = {name: rmse_body(scan, name, runs[name][0]) for name in PEERS if name in runs}
    ratios = {
        f"ratio_{name}": round(middle[name] / middle[order], 2) if name in runs else None
        for name, order in PEERS.items()
    }
    return {
        "benchmark": "preparing",
        **ratios,
        "hu_rmse_body": round(max(rmse.values()), 3),
        "peak_mb": round(max(peak["cubic"], peak["linear"])),
        "peer_peak_mb": round(min(peak[name] for name in PEERS if name in runs)),
        "hu_rmse_body_by_peer": {name: round(value, 4) for name, value in rmse.items()},
        "cache_is_path": all(cache_is_path(scan, name, runs[name][0], spacing_mm) for name in ("cubic", "linear")),
        "spacing_mm": spacing_mm,
        "case_sha256": sha256_of(case / "data.nii.gz"),
        "output_sha256": {name: sha256_of(Path(found[0]["out"]) / "hu.npy") for name, found in runs.items()},
        "raw": runs,
        "versions": {name: metadata.version(name) for name in ("gtvray", "monai", "torch", "numpy", "scipy", "blosc2")},
        "machine": {"cpus": os.cpu_count(), "python": platform.python_version()},
    }


def rmse_body(scan: Volume, peer: str, run: dict[str, Any]) -> float:
    """Root mean square difference in HU to a peer at the peer's voxel centres, where the peer has tissue."""
    theirs = np.load(Path(run["out"]) / "hu.npy", mmap_mode="r")
    affine = np.asarray(run["affine"]) if "affine" in run else _edge_aligned(scan, theirs.shape)
    order = 3 if PEERS[peer] == "cubic" else 1
    ours = resample_to_grid(scan, affine, theirs.shape, order=order, fill=AIR_HU).array
    apart = (np.clip(ours, AIR_HU, TOP_HU) - theirs)[theirs > BODY_HU]
    return float(np.sqrt(np.mean(apart.astype(np.float64) ** 2)))


def _edge_aligned(scan: Volume, shape: tuple[int, ...]) -> np.ndarray:
    """The grid of nnU-Net's resize: the same outer edges with other voxels."""
    step = np.asarray(scan.shape) / np.asarray(shape)
    into = np.diag([*step, 1.0])
    into[:3, 3] = (step - 1) / 2
    return scan.affine @ into


def cache_is_path(scan: Volume, interpolation: str, run: dict[str, Any], spacing_mm: tuple[float, ...]) -> bool:
    """Whether the cached case equals the output of preparing."""
    from gtvray.preprocessing import prepare

    hu = prepare(scan, settings(spacing_mm, interpolation)).hu
    stored = np.load(Path(run["out"]) / "hu.npy", mmap_mode="r")
    return bool(np.array_equal(hu.array, stored) and np.allclose(hu.affine, run["affine"]))


if __name__ == "__main__":
    main()
