"""Scoring masks: gtvray and MONAI on the same masks, in one process with one thread.

Both compute DSC, HD95, ASSD and NSD at 1, 2 and 5 mm on the full grid. Masks: irregular tumours on the StructSeg grid
(512 x 512 x 124 at 1.14 x 1.14 x 3 mm) and, with --data, the labels of a dataset; the prediction is the reference
shifted, partly eroded, with a small island. `ratio_monai` is the seconds of MONAI divided by those of gtvray over all
masks, each the minimum of alternating repetitions; it is null if any value differs by more than 1e-4, because a ratio
of unequal outputs has no meaning. `load` is the mean load before and after: above `cpus`, other work was running.

    python benchmarks/metrics.py --json [--data DIR]
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import time
import warnings
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from monai.metrics import DiceMetric, HausdorffDistanceMetric, SurfaceDiceMetric, SurfaceDistanceMetric
from scipy import ndimage

from gtvray.datasets import index_dataset, read_binary
from gtvray.evaluation import NSD_TOLERANCES_MM, score_case
from gtvray.geometry import Volume

GRID, SPACING_MM = (512, 512, 124), (1.14, 1.14, 3.0)
PHANTOMS, REAL_CASES, REPETITIONS = 3, 6, 3
TOLERANCE = 1e-4


def main() -> None:
    """Score every pair with both and print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="no effect; the output is always JSON")
    parser.add_argument("--data", type=Path, help="dataset whose labels are scored too")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    references = [phantom(seed) for seed in range(PHANTOMS)]
    if options.data is not None:
        cases = index_dataset(options.data).cases[:REAL_CASES]
        references += [read_binary(case.label) for case in cases if case.label is not None]
    pairs = [(reference, prediction_of(reference)) for reference in references]
    seconds: dict[str, list[float]] = {"gtvray": [], "monai": []}
    load = [os.getloadavg()[0]]
    for _ in range(REPETITIONS):
        values = {}
        for name, scorer in (("gtvray", ours), ("monai", monais)):
            began = time.perf_counter()
            values[name] = [scorer(*pair) for pair in pairs]
            seconds[name].append(time.perf_counter() - began)
    load.append(os.getloadavg()[0])
    difference = float(np.abs(np.subtract(values["gtvray"], values["monai"])).max())
    equal = difference <= TOLERANCE
    result: dict[str, Any] = {
        "benchmark": "metrics",
        "ratio_monai": min(seconds["monai"]) / min(seconds["gtvray"]) if equal else None,
        "max_abs_difference": difference,
        "equal_output": equal,
        "output_sha256": {name: digest(of_scorer) for name, of_scorer in values.items()},
        "cpus": os.cpu_count(),
        "load": load,
        "machine": "loaded" if max(load) > (os.cpu_count() or 1) else "idle",
        "pairs": len(pairs),
        "shapes": sorted({reference.shape for reference in references}),
        "seconds": seconds,
        "versions": {name: metadata.version(name) for name in ("gtvray", "monai", "numpy", "torch", "edt")},
        "python": platform.python_version(),
    }
    print(json.dumps(result))


def digest(values: list[list[float]]) -> str:
    """sha256 of the values rounded to six decimals, so that rounding of sums does not change it."""
    return hashlib.sha256(json.dumps(np.round(values, 6).tolist()).encode()).hexdigest()


def ours(reference: Volume, prediction: Volume) -> list[float]:
    """Scores of gtvray; the time includes added path length and tumour counts."""
    score = score_case("case", reference, prediction)
    return [score.dsc, score.hd95_mm, score.assd_mm, score.nsd_1mm, score.nsd_2mm, score.nsd_5mm]


def monais(reference: Volume, prediction: Volume) -> list[float]:
    """Scores of MONAI, called as documented: one-hot, without background."""
    y, y_pred = (one_hot(volume) for volume in (reference, prediction))
    spacing = list(reference.spacing_mm)
    return [
        float(DiceMetric(include_background=False)(y_pred, y)),
        float(HausdorffDistanceMetric(percentile=95)(y_pred, y, spacing=spacing)),
        float(SurfaceDistanceMetric(symmetric=True)(y_pred, y, spacing=spacing)),
        *(
            float(SurfaceDiceMetric([tolerance], use_subvoxels=True)(y_pred, y, spacing=spacing))
            for tolerance in NSD_TOLERANCES_MM
        ),
    ]


def one_hot(volume: Volume) -> torch.Tensor:
    """Return background and tumour as float channels, (1, 2, i, j, k)."""
    mask = volume.array != 0
    return torch.from_numpy(np.stack([~mask, mask])[None].astype(np.float32))


def phantom(seed: int) -> Volume:
    """Make an irregular tumour of about 30 ml near the centre of the StructSeg grid."""
    rng = np.random.default_rng(seed)
    size = (44, 44, 18)
    offset = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in size], indexing="ij"))
    rough = ndimage.gaussian_filter(rng.standard_normal(size), (4, 4, 1.5))
    tumour = np.linalg.norm(offset, axis=0) + 3 * rough < 0.8
    mask: npt.NDArray[np.uint8] = np.zeros(GRID, dtype=np.uint8)
    start = [n // 2 + int(d) for n, d in zip(GRID, rng.integers(-10, 10, 3), strict=True)]
    mask[tuple(slice(s, s + n) for s, n in zip(start, size, strict=True))] = tumour
    return Volume(mask, np.diag([*SPACING_MM, 1.0]))


def prediction_of(reference: Volume) -> Volume:
    """Shift the reference by two voxels, remove every fifth slice, and add an island of a few voxels."""
    mask = np.roll(reference.array != 0, (2, -1, 1), axis=(0, 1, 2))
    mask[:, :, ::5] = False
    i, j, k = np.argwhere(reference.array != 0)[0]
    mask[i - 6 : i - 4, j - 4 : j - 2, k : k + 2] = True
    return reference.with_array(mask.astype(np.uint8))


if __name__ == "__main__":
    main()
