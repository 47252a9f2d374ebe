"""nnU-Net's own loader on prepared cases, run in nnU-Net's environment; prints one JSON line.

It uses nnU-Net's dataset (blosc2), nnUNetDataLoader and the transforms of the default trainer for an isotropic 3-D
patch, in one process with one thread. gtvray is not imported.

    python patches_nnunet.py WORK PATCH BATCH BATCHES SINGLES
"""

from __future__ import annotations

import json
import sys
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import blosc2
import numpy as np
import torch
from nnunetv2.training.data_augmentation.compute_initial_patch_size import get_patch_size
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.training.dataloading.nnunet_dataset import comp_blosc2_params, nnUNetDatasetBlosc2
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from patch_statistics import describe, timed

ROTATION = (-np.pi / 6, np.pi / 6)
PARAMETER_DRAWS = 1500
NAMES = ("spatial", "noise", "blur", "brightness", "contrast", "low_resolution", "gamma_inverted", "gamma")


def main(work: Path, patch: int, batch: int, batches: int, singles: int) -> None:
    """Measure rate and statistics of the loader, then statistics of each transform alone, `singles` draws."""
    np.random.seed(0)  # noqa: NPY002  the generator that nnU-Net uses
    torch.manual_seed(0)
    torch.set_num_threads(1)
    blosc2.set_nthreads(1)
    size = (patch,) * 3
    initial = get_patch_size(size, ROTATION, ROTATION, ROTATION, (0.85, 1.25))
    transforms = nnUNetTrainer.get_training_transforms(
        size, ROTATION, None, (0, 1, 2), False, use_mask_for_norm=[False]
    )
    loader = nnUNetDataLoader(
        dataset(work, size),
        batch,
        initial,
        size,
        SimpleNamespace(all_labels=[1], has_ignore_label=False),
        oversample_foreground_percent=0.33,
        probabilistic_oversampling=True,
        transforms=transforms,
    )

    def drawn() -> tuple[Any, Any]:
        made = next(loader)
        return made["data"], made["target"]

    result = timed(drawn, batches)
    if singles:
        result |= alone(transforms, work, tuple(int(n) for n in initial), singles)
    result["versions"] = {name: metadata.version(name) for name in ("nnunetv2", "batchgeneratorsv2", "blosc2", "torch")}
    print(json.dumps(result))


def dataset(work: Path, size: tuple[int, ...]) -> nnUNetDatasetBlosc2:
    """Store the prepared cases as nnU-Net does: float32 and class locations, in its chunks."""
    folder = work / "nnunet"
    if not folder.exists():
        folder.mkdir()
        for file in sorted((work / "prepared").glob("*.npz")):
            case = np.load(file)
            image, mask = case["image"][None], case["mask"][None].astype(np.int8)
            found = np.argwhere(mask)
            keep = np.random.default_rng(0).permutation(len(found))[:10_000]
            blocks, chunks = comp_blosc2_params(image.shape, size, image.itemsize)
            blocks_seg, chunks_seg = comp_blosc2_params(mask.shape, size, mask.itemsize)
            nnUNetDatasetBlosc2.save_case(
                image,
                mask,
                {"class_locations": {1: found[keep]}},
                str(folder / file.stem),
                chunks=chunks,
                blocks=blocks,
                chunks_seg=chunks_seg,
                blocks_seg=blocks_seg,
            )
    return nnUNetDatasetBlosc2(str(folder))


def alone(transforms: Any, work: Path, initial: tuple[int, ...], draws: int) -> dict[str, Any]:
    """Apply each transform alone, with probability 1, to one patch: statistics, parameters, probability."""
    case = np.load(work / "reference.npz")
    box = tuple(slice(int(c) - n // 2, int(c) - n // 2 + n) for c, n in zip(case["centre"], initial, strict=True))
    inner = tuple(slice((n - p) // 2, (n - p) // 2 + p) for n, p in zip(initial, case["patch"], strict=True))
    wide = {
        "image": torch.from_numpy(case["image"][box])[None],
        "segmentation": torch.from_numpy(case["mask"][box])[None],
    }
    small = {name: part[(slice(None), *inner)].contiguous() for name, part in wide.items()}
    singles, parameters, probabilities = {}, {}, {}
    for name, transform in zip(NAMES, transforms.transforms, strict=False):
        change = transform if name == "spatial" else transform.transform
        if name == "spatial":
            probabilities |= {"rotate": change.p_rotation, "zoom": change.p_scaling}
            change.p_rotation = change.p_scaling = 1.0
        else:
            probabilities[name] = transform.apply_probability * getattr(change, "p_per_channel", 1.0)
            change.p_per_channel = 1.0
        given = wide if name == "spatial" else small
        made = [change(**{key: part.clone() for key, part in given.items()}) for _ in range(draws)]
        singles[name] = [describe(one["image"].numpy(), one["segmentation"].numpy()) for one in made]
        parameters[name] = [drawn(name, change.get_parameters(**given)) for _ in range(PARAMETER_DRAWS)]
    return {"singles": singles, "parameters": parameters, "probabilities": probabilities}


def drawn(name: str, found: dict[str, Any]) -> list[float]:
    """Return the parameters that a transform drew, as numbers."""
    if name == "spatial":
        affine = found["affine"]
        span = np.linalg.det(affine) ** (1 / 3)
        turned = np.arccos(np.clip((np.trace(affine / span) - 1) / 2, -1, 1))
        return [float(span), float(np.degrees(turned))]
    keys = {
        "noise": "sigmas",
        "blur": "sigmas",
        "low_resolution": "scales",
        "gamma_inverted": "gamma",
        "gamma": "gamma",
    }
    return [float(value) for value in np.asarray(found[keys.get(name, "multipliers")]).reshape(-1)]


if __name__ == "__main__":
    main(Path(sys.argv[1]), *(int(text) for text in sys.argv[2:]))
