"""MONAI's usual loader on prepared cases: PersistentDataset, random dictionary transforms, DataLoader.

The transforms are those of MONAI that are closest to nnU-Net's, with its probabilities and ranges. Rotation and zoom
follow a crop as large as nnU-Net's, so that no corner is empty. MONAI can defer resampling and do it once (lazy);
both variants are measured, and the faster one is reported.

    python patches_monai.py WORK PATCH BATCH BATCHES SINGLES
"""

from __future__ import annotations

import json
import sys
import warnings
from importlib import metadata
from itertools import cycle
from pathlib import Path
from typing import Any

warnings.simplefilter("ignore")

import numpy as np  # noqa: E402
import torch  # noqa: E402
from monai import transforms as mt  # noqa: E402
from monai.data import DataLoader, PersistentDataset  # noqa: E402
from patch_statistics import describe, timed, wide_of  # noqa: E402

KEYS = ("image", "mask")
ANGLE = np.pi / 6


def main(work: Path, patch: int, batch: int, batches: int, singles: int) -> None:
    """Measure the loader in both variants, then each transform alone with `singles` draws."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    ways = {name: rate(work, patch, batch, batches, lazy) for name, lazy in (("eager", False), ("lazy", True))}
    best = min(ways, key=lambda name: ways[name]["seconds"])
    result = {**ways[best], "way": best, "ways": {name: way["seconds"] for name, way in ways.items()}}
    if singles:
        result["singles"] = alone(work, patch, singles)
    result["versions"] = {name: metadata.version(name) for name in ("monai", "torch")}
    print(json.dumps(result))


def spatial(patch: int, prob: float) -> list[Any]:
    """Rotation, zoom and the crop to the patch."""
    modes = ("bilinear", "nearest")
    turn = {"range_x": ANGLE, "range_y": ANGLE, "range_z": ANGLE, "padding_mode": "zeros"}
    return [
        mt.RandRotated(KEYS, prob=prob, mode=modes, **turn),
        mt.RandZoomd(
            KEYS, prob=prob, min_zoom=1 / 1.4, max_zoom=1 / 0.7, mode=("trilinear", "nearest"), padding_mode="constant"
        ),
        mt.CenterSpatialCropd(KEYS, patch),
    ]


def intensity(prob: dict[str, float]) -> dict[str, Any]:
    """Intensity transforms, in nnU-Net's order."""
    sigma, gamma = (0.5, 1.0), (0.7, 1.5)
    bend = {"gamma": gamma, "retain_stats": True}
    return {
        "noise": mt.RandGaussianNoised("image", prob=prob["noise"], mean=0.0, std=0.1, sample_std=True),
        "blur": mt.RandGaussianSmoothd("image", sigma, sigma, sigma, prob=prob["blur"]),
        "brightness": mt.RandScaleIntensityd("image", factors=0.25, prob=prob["brightness"]),
        "contrast": mt.RandScaleIntensityFixedMeand("image", factors=0.25, preserve_range=True, prob=prob["contrast"]),
        "low_resolution": mt.RandSimulateLowResolutiond("image", prob=prob["low_resolution"], zoom_range=(0.5, 1.0)),
        "gamma_inverted": mt.RandAdjustContrastd("image", prob=prob["gamma_inverted"], invert_image=True, **bend),
        "gamma": mt.RandAdjustContrastd("image", prob=prob["gamma"], **bend),
    }


PROBABILITIES = {
    "noise": 0.1,
    "blur": 0.1,
    "brightness": 0.15,
    "contrast": 0.15,
    "low_resolution": 0.125,
    "gamma_inverted": 0.1,
    "gamma": 0.3,
}


def rate(work: Path, patch: int, batch: int, batches: int, lazy: bool) -> dict[str, Any]:
    """Rate of the loader and statistics of its patches."""
    wide = (wide_of(patch),) * 3
    crop = mt.RandCropByPosNegLabeld(KEYS, "mask", wide, pos=0.33, neg=0.67, num_samples=1, allow_smaller=True)
    flips = [mt.RandFlipd(KEYS, prob=0.5, spatial_axis=axis) for axis in range(3)]
    chain = mt.Compose(
        [
            mt.LoadImaged(KEYS, ensure_channel_first=True),
            mt.SpatialPadd(KEYS, patch),
            mt.EnsureTyped(KEYS, dtype=(torch.float32, torch.uint8)),
            crop,
            *spatial(patch, 0.2),
            *intensity(PROBABILITIES).values(),
            *flips,
        ],
        lazy=lazy,
    )
    chain.set_random_state(seed=0)
    names = sorted(file.name for file in (work / "nifti").glob("*_image.nii.gz"))
    items = [
        {"image": str(work / "nifti" / n), "mask": str(work / "nifti" / n.replace("image", "mask"))} for n in names
    ]
    cache = work / f"monai-{'lazy' if lazy else 'eager'}"
    loader = DataLoader(PersistentDataset(items, chain, cache), batch_size=batch, shuffle=True, num_workers=0)
    stream = (made for again in cycle([loader]) for made in again)

    def drawn() -> tuple[Any, Any]:
        made = next(stream)
        return made["image"], made["mask"]

    return timed(drawn, batches)


def alone(work: Path, patch: int, draws: int) -> dict[str, Any]:
    """Apply each transform alone, with probability 1, to one patch."""
    case = np.load(work / "reference.npz")
    size = (wide_of(patch),) * 3
    box = tuple(slice(int(c) - n // 2, int(c) - n // 2 + n) for c, n in zip(case["centre"], size, strict=True))
    wide = {name: torch.from_numpy(case[name][box])[None].float() for name in KEYS}
    small = mt.CenterSpatialCropd(KEYS, patch)(wide)
    changes = {"spatial": mt.Compose(spatial(patch, 1.0)), **intensity(dict.fromkeys(PROBABILITIES, 1.0))}
    rows: dict[str, Any] = {}
    for name, change in changes.items():
        change.set_random_state(seed=1)
        given = wide if name == "spatial" else small
        made = [change({key: part.clone() for key, part in given.items()}) for _ in range(draws)]
        rows[name] = [describe(np.asarray(one["image"]), np.asarray(one["mask"])) for one in made]
    return rows


if __name__ == "__main__":
    main(Path(sys.argv[1]), *(int(text) for text in sys.argv[2:]))
