"""Augmented patches per second on one core: the loaders of gtvray, nnU-Net and MONAI, from the same prepared voxels.

Each contestant runs in its own process with one thread and reads its own cache: gtvray its case cache (int16
HU), nnU-Net its blosc2 files, MONAI a PersistentDataset (both float32, scaled to the same window). All use nnU-Net's
default 3-D transforms with its probabilities and ranges, and a third of patches at the tumour; runs alternate.

Equal output: loaders as a unit, and each transform alone on one patch, are compared by the distributions over patches
of mean, deviation, quantiles and share of foreground: the largest difference between the same quantiles (10 to 90 %) of
the two, in units of the window. Parameters drawn by nnU-Net are compared in the same way, and its probabilities
must be equal. Known differences, in the loaders only: gtvray interpolates HU and then applies the window, the peers
interpolate values of the window; nnU-Net fills with zeros where a rotated patch leaves the region that it read, gtvray
reads further; gtvray jitters patches at the tumour. MONAI's transforms differ more: zoom and exponents are drawn
uniformly over their range, and blur introduces zeros.

`growth` is gtvray's rate with many cases divided by that with few; a case is a folder of hard links to a real one.

    python benchmarks/patches.py --json [--data DATASET] [--nnunet-python /path/to/its/bin/python]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent / "peers"))
from patch_statistics import FIGURES, describe, difference, timed, wide_of

from gtvray.config import AugmentationConfig, CacheConfig, PreprocessingConfig, TrainingConfig
from gtvray.data import CachedCase, CaseCache, PatchSampler
from gtvray.data.patches.draws import CHANGES, Draw, draw_changes
from gtvray.datasets import index_dataset, write_phantoms
from gtvray.geometry import Box, Volume
from gtvray.io import read_json, write_volume
from gtvray.preprocessing import AIR_HU, to_channels

PREPROCESSING = PreprocessingConfig()
AUGMENTATION = AugmentationConfig(strength=1.0, flip_front_back=0.5, flip_up_down=0.5)
INTENSITIES = ("noise", "blur", "brightness", "contrast", "low_resolution", "gamma_inverted", "gamma")
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "BLOSC_NTHREADS"), "1")
# Largest differences attributed to chance and known differences: parameters in standard deviations of the draws,
# the rest in units of the window.
LIMITS = {
    "nnunet": {"transforms": 0.06, "loaders": 0.08, "parameters": 0.25},
    "monai": {"transforms": 0.25, "loaders": 0.12},
}
PARAMETER_DRAWS = 1500
UNTOLD = ("json", "run", "nnunet_python")


def main() -> None:
    """Run all contestants and print one JSON line; with --run, run as one of gtvray."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="no effect; the output is always JSON")
    parser.add_argument("--data", type=Path, help="dataset; default: phantoms")
    parser.add_argument("--cases", type=int, default=12, help="number of its cases")
    parser.add_argument("--nnunet-python", type=Path, default=os.environ.get("GTVRAY_BENCH_NNUNET"))
    parser.add_argument("--patch", type=int, default=64)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--batches", type=int, default=150, help="timed batches per repetition")
    parser.add_argument("--singles", type=int, default=300, help="draws of each transform alone")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--few", type=int, default=50)
    parser.add_argument("--many", type=int, default=5000)
    parser.add_argument("--run", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.run:
        print(json.dumps(run_ours(given.run, given)))
        return
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        prepare(work, given)
        names = ["ours", "monai", *(["nnunet"] if given.nnunet_python else [])]
        runs: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
        for repeat in range(given.repeats):
            for name in names:
                runs[name].append(contest(name, work, given, given.singles if repeat == 0 else 0))
        growth = [contest("growth", work, given, 0) for _ in range(given.repeats)]
    print(json.dumps(report(runs, growth, given)))


def prepare(work: Path, given: argparse.Namespace) -> None:
    """Write gtvray's cache, the same voxels in the formats of the peers, and one reference patch."""
    source = given.data
    if source is None:
        source = work / "phantoms"
        write_phantoms(source, given.cases, 0)
    cache = CaseCache(work / "cache", PREPROCESSING, CacheConfig())
    cases = cache.prepare_all(index_dataset(source).cases[: given.cases])
    (work / "prepared").mkdir()
    (work / "nifti").mkdir()
    largest = max(cases, key=lambda case: min(case.shape))
    for n, case in enumerate(cases):
        hu, mask = case.read(Box.whole(case.shape))
        image = to_channels(hu, PREPROCESSING.windows_hu)[0]
        np.savez(work / "prepared" / f"{n:03d}.npz", image=image, mask=mask)
        for name, array in (("image", image), ("mask", mask)):
            write_volume(work / "nifti" / f"{n:03d}_{name}.nii.gz", Volume(array, np.array(case.meta["affine"])))
        if case is largest:
            # At the tumour, surrounded by enough air for the region of every contestant.
            wide, labels = np.pad(hu, given.patch, constant_values=AIR_HU), np.pad(mask, given.patch)
            centre = np.rint(case.foreground_ijk().mean(axis=0)).astype(int) + given.patch
            np.savez(
                work / "reference.npz",
                image=to_channels(wide, PREPROCESSING.windows_hu)[0],
                mask=labels,
                centre=centre,
                patch=(given.patch,) * 3,
            )
    listing = [{"case_id": case.case_id, "folder": str(case.folder)} for case in cases]
    (work / "cases.json").write_text(json.dumps({"cases": listing}))


def contest(name: str, work: Path, given: argparse.Namespace, singles: int) -> dict[str, Any]:
    """Run one contestant in one process with one thread."""
    figures = [str(value) for value in (given.patch, given.batch, given.batches, singles)]
    peers = Path(__file__).parent / "peers"
    if name in ("ours", "growth"):
        options = ("--patch", "--batch", "--batches", "--singles")
        pairs = [word for pair in zip(options, figures, strict=True) for word in pair]
        growing = ["--few", str(given.few), "--many", str(given.many)] if name == "growth" else ["--many", "0"]
        command = [sys.executable, __file__, "--run", str(work), *pairs, *growing]
    else:
        python = sys.executable if name == "monai" else str(given.nnunet_python)
        command = [python, str(peers / f"patches_{name}.py"), str(work), *figures]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env={**os.environ, **ONE_THREAD})
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def run_ours(work: Path, given: argparse.Namespace) -> dict[str, Any]:
    """Run gtvray's sampler; with --many, compare few cases with many."""
    import torch

    torch.set_num_threads(1)
    listing = read_json(work / "cases.json")["cases"]
    cases = [
        CachedCase(one["case_id"], Path(one["folder"]), read_json(Path(one["folder"]) / "meta.json")) for one in listing
    ]
    if given.many:
        folders = {count: linked(cases, work / f"linked-{count}", count) for count in (given.few, given.many)}
        # Alternating, so that other load on the machine affects both alike.
        turns = [{count: rate(many, given)["seconds"] for count, many in folders.items()} for _ in range(3)]
        return {"seconds": {count: [turn[count] for turn in turns] for count in folders}}
    result = rate(cases, given)
    return {**result, **alone(work, given)} if given.singles else result


def rate(cases: list[CachedCase], given: argparse.Namespace) -> dict[str, Any]:
    """Rate of the sampler and statistics of its patches."""
    training = TrainingConfig(patch_ijk=(given.patch,) * 3, foreground_share=0.33, batch_size=given.batch)
    sampler = PatchSampler(cases, training, PREPROCESSING, AUGMENTATION)
    first = iter(range(0, 10**9, given.batch))

    def drawn() -> tuple[Any, Any]:
        start = next(first)
        return sampler.batch(range(start, start + given.batch))

    return timed(drawn, given.batches)


def linked(cases: list[CachedCase], folder: Path, count: int) -> list[CachedCase]:
    """Make a number of cases, each in its own folder."""
    made = []
    for n in range(count):
        case, place = cases[n % len(cases)], folder / f"{n:05d}"
        if not place.exists():
            place.mkdir(parents=True)
            for file in case.folder.iterdir():
                os.link(file, place / file.name)
        made.append(CachedCase(str(n), place, case.meta))
    return made


def alone(work: Path, given: argparse.Namespace) -> dict[str, Any]:
    """Apply each transform alone, with probability 1, to the reference patch: statistics and parameters."""
    import torch

    from gtvray.data.patches.augmentation import change_intensities
    from gtvray.data.patches.warp import Warp

    case = np.load(work / "reference.npz")
    size, spacing_mm, off = (given.patch,) * 3, PREPROCESSING.spacing_mm, dict.fromkeys(CHANGES, 0.0)
    start = case["centre"] - given.patch // 2
    box = Box(tuple(start.tolist()), tuple((start + given.patch).tolist()))
    image, mask = torch.from_numpy(case["image"][box.slices])[None], case["mask"][box.slices]
    # As in the peers: only the region that nnU-Net reads, nothing around it, and values of the window.
    wide = wide_of(given.patch)
    around = case["centre"] - wide // 2
    region = tuple(slice(a, a + wide) for a in around.tolist())
    whole, labels = (torch.from_numpy(np.pad(case[name][region].astype(np.float32), 1)) for name in ("image", "mask"))
    middle = start + (given.patch - 1) / 2 - around + 1
    rows: dict[str, Any] = {}
    parameters: dict[str, Any] = {}
    for name in ("spatial", *INTENSITIES):
        certain = {"rotate": 1.0, "zoom": 1.0} if name == "spatial" else {name: 1.0}
        config = AUGMENTATION.model_copy(update={**off, **certain})
        draws = [draw_changes(config, spacing_mm, np.random.default_rng((5, n))) for n in range(PARAMETER_DRAWS)]
        parameters[name] = [drawn_values(name, draw) for draw in draws]
        rows[name] = []
        for draw in draws[: given.singles]:
            if name == "spatial":
                warp = Warp.build(draw, size, spacing_mm, AUGMENTATION.elastic_grid_mm)
                parts = [warp.sample(part, middle).numpy() for part in (whole, labels)]
                rows[name].append(describe(parts[0], parts[1] >= 0.5))
            else:
                rows[name].append(describe(change_intensities(image.clone(), draw).numpy(), mask))
    return {"singles": rows, "parameters": parameters}


def drawn_values(name: str, draw: Draw) -> list[float]:
    """Return the parameters drawn for one transform, in the format of nnU-Net's script."""
    if name == "spatial":
        span = float(np.mean(draw.span_ijk or 1))
        matrix = draw.matrix((1, 1, 1)) / span
        return [span, float(np.degrees(np.arccos(np.clip((np.trace(matrix) - 1) / 2, -1, 1))))]
    fields = {"noise": "noise_sigma", "blur": "blur_sigma_voxels", "low_resolution": "kept_ijk"}
    return np.asarray(getattr(draw, fields.get(name, name)), dtype=float).reshape(-1).tolist()


def report(runs: dict[str, Any], growth: list[dict[str, Any]], given: argparse.Namespace) -> dict[str, Any]:
    """Results and raw measurements."""
    rates = {name: statistics.median(run["patches"] / run["seconds"] for run in many) for name, many in runs.items()}
    seconds = {count: [s for run in growth for s in run["seconds"][str(count)]] for count in (given.few, given.many)}
    figures = ("patches", "seconds", "cpu_s", "way", "ways", "versions")
    return {
        "benchmark": "patches",
        "ratio_nnunet": round(rates["ours"] / rates["nnunet"], 2) if "nnunet" in rates else None,
        "ratio_monai": round(rates["ours"] / rates["monai"], 2),
        "growth": round(statistics.median(seconds[given.few]) / statistics.median(seconds[given.many]), 3),
        "patches_per_s": {name: round(value, 1) for name, value in rates.items()},
        "equal_output": {
            name: compare(runs["ours"], many, LIMITS[name]) for name, many in runs.items() if name != "ours"
        },
        "means": {
            name: dict(zip(FIGURES, np.round(np.mean(all_rows(many), axis=0), 4).tolist(), strict=True))
            for name, many in runs.items()
        },
        "raw": {
            name: [{key: run[key] for key in figures if key in run} for run in many] for name, many in runs.items()
        },
        "growth_seconds": seconds,
        # Only the name of a path, because the folders above it are specific to this machine.
        "settings": {
            key: str(getattr(value, "name", value)) for key, value in vars(given).items() if key not in UNTOLD
        },
        "versions": {name: metadata.version(name) for name in ("gtvray", "torch", "blosc2", "monai", "numpy")},
        "machine": {"cpus": os.cpu_count(), "python": platform.python_version()},
    }


def compare(ours: list[dict[str, Any]], peers: list[dict[str, Any]], limits: dict[str, float]) -> dict[str, Any]:
    """Whether a peer's patches have the same distribution as gtvray's, and the differences."""
    one, other = ours[0], peers[0]
    found: dict[str, Any] = {
        "loaders": dict(zip(FIGURES, difference(all_rows(ours), all_rows(peers)), strict=True)),
        "transforms": {
            name: dict(zip(FIGURES, difference(one["singles"][name], rows), strict=True))
            for name, rows in other["singles"].items()
        },
    }
    worst = {
        "loaders": max(found["loaders"].values()),
        "transforms": max(max(row.values()) for row in found["transforms"].values()),
    }
    if "parameters" in other:
        found["parameters"] = {
            name: (np.array(difference(one["parameters"][name], rows)) / np.std(rows, axis=0)).round(3).tolist()
            for name, rows in other["parameters"].items()
        }
        worst["parameters"] = max(max(row) for row in found["parameters"].values())
        found["probabilities"] = other["probabilities"] == {
            key: getattr(AUGMENTATION, key) for key in other["probabilities"]
        }
    same = all(worst[kind] <= limits[kind] for kind in worst) and found.get("probabilities", True)
    return {"same": bool(same), "worst": worst, **found}


def all_rows(runs: list[dict[str, Any]]) -> list[list[float]]:
    """Return the statistics of the patches of all repetitions."""
    return [row for run in runs for row in run["rows"]]


if __name__ == "__main__":
    sys.exit(main())
