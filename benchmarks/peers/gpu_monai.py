"""MONAI as a contestant of `gpu.py`: the training loop of its tutorials, and its sliding window from file to file.

Network, patch, batch, optimizer and precision are gtvray's. The loader is MONAI's: prepared cases in a CacheDataset,
random dictionary transforms with nnU-Net's probabilities, and a DataLoader with worker processes.
"""

from __future__ import annotations

import time
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai import transforms as mt
from monai.data import CacheDataset, DataLoader
from monai.inferers import SlidingWindowInferer
from monai.losses.dice import DiceCELoss

from gtvray.config import Config
from gtvray.data import CachedCase
from gtvray.geometry import Volume
from gtvray.io import write_volume
from gtvray.models import Bundle, build_network

KEYS = ("image", "mask")
ANGLE = np.pi / 6
_MOST_WORKERS = 8


def training(
    config: Config, train: list[CachedCase], device: torch.device, dtype: torch.dtype, *, workers: int, busy_of: Any
) -> dict[str, Any]:
    """Warm up for an epoch, time the next."""
    settings, steps = config.training, config.training.steps_per_epoch
    torch.manual_seed(0)
    network = build_network(
        config.network, config.preprocessing.channels, config.preprocessing.spacing_mm, settings.patch_ijk
    ).to(device)
    optimizer = torch.optim.SGD(
        network.parameters(), config.optimizer.lr, config.optimizer.momentum, nesterov=True, weight_decay=3e-5
    )
    loss_of, scaler = DiceCELoss(sigmoid=True), torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True
        torch.cuda.reset_peak_memory_stats()
    batches = loader(config, train, min(_MOST_WORKERS, workers) if device.type == "cuda" else 0)
    found = {}
    for timed in (False, True):
        waited, losses = 0.0, []
        with busy_of() as busy:
            began = time.perf_counter()
            for _step in range(steps):
                asked = time.perf_counter()
                batch = next(batches)
                images, masks = (batch[key].as_tensor().to(device, non_blocking=True) for key in KEYS)
                waited += time.perf_counter() - asked
                optimizer.zero_grad(set_to_none=True)
                with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                    loss = loss_of(network(images), masks)
                scaler.scale(loss).backward()
                scaler.unscale_(optimizer)
                torch.nn.utils.clip_grad_norm_(network.parameters(), config.optimizer.clip_norm)
                scaler.step(optimizer)
                scaler.update()
                losses.append(loss.item())
            seconds = time.perf_counter() - began
        if timed:
            found = {
                "steps_s": round(steps / seconds, 3),
                "gpu_busy_share": busy.share(seconds),
                "data_wait_share": round(waited / seconds, 4),
                "train_loss": float(np.mean(losses)),
            }
    peak = round(torch.cuda.max_memory_reserved() / 1e9, 3) if device.type == "cuda" else None
    return {**found, "peak_gb": peak}


def loader(config: Config, train: list[CachedCase], workers: int) -> Any:
    """Return an endless iterator of batches."""
    low, high = config.preprocessing.windows_hu[0]
    data = []
    for case in train:
        prepared, mask = case.whole()
        image = np.clip((prepared.hu.array.astype(np.float32) - low) / (high - low), 0, 1)
        data.append({"image": torch.from_numpy(image)[None], "mask": torch.from_numpy(mask)[None].float()})
    patch = config.training.patch_ijk
    aug = config.augmentation
    turn = {f"range_{axis}": ANGLE for axis in "xyz"}
    chain = mt.Compose(
        [
            mt.SpatialPadd(KEYS, patch),
            mt.RandCropByPosNegLabeld(KEYS, "mask", patch, pos=1, neg=2, num_samples=1),
            mt.RandRotated(KEYS, prob=aug.rotate, mode=("bilinear", "nearest"), **turn),
            mt.RandZoomd(KEYS, prob=aug.zoom, min_zoom=0.7, max_zoom=1.4, mode=("trilinear", "nearest")),
            *(mt.RandFlipd(KEYS, prob=0.5, spatial_axis=axis) for axis in range(3)),
            mt.RandGaussianNoised("image", prob=aug.noise, std=0.1),
            mt.RandGaussianSmoothd("image", (0.5, 1.0), (0.5, 1.0), (0.5, 1.0), prob=aug.blur),
            mt.RandScaleIntensityd("image", factors=0.25, prob=aug.brightness),
            mt.RandSimulateLowResolutiond("image", prob=aug.low_resolution, zoom_range=(0.5, 1.0)),
            mt.RandAdjustContrastd("image", prob=aug.gamma, gamma=(0.7, 1.5), retain_stats=True),
        ]
    )
    # One entry per patch, so that an epoch of the loader is not limited to the number of cases.
    size = config.training.batch_size * config.training.steps_per_epoch
    dataset = CacheDataset([data[n % len(data)] for n in range(size)], chain, cache_rate=0.0, progress=False)
    return cycle_of(
        DataLoader(
            dataset,
            batch_size=config.training.batch_size,
            shuffle=True,
            num_workers=workers,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=workers > 0,
        )
    )


def cycle_of(batches: Any) -> Any:
    """Iterate over the loader endlessly; `itertools.cycle` would repeat the patches of the first epoch."""
    for _ in cycle([None]):
        yield from batches


def inference(model: Path, scan: Path, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """Time MONAI's usual pipeline from file to file, with network and sliding window on the device."""
    bundle = Bundle.load(model)
    settings = bundle.inference
    chain = mt.Compose(
        [
            mt.LoadImage(ensure_channel_first=True),
            mt.Orientation("RAS", labels=None),
            mt.Spacing(bundle.preprocessing.spacing_mm, mode="bilinear"),
        ]
    )
    windows = [mt.ScaleIntensityRange(*w, 0.0, 1.0, clip=True) for w in bundle.preprocessing.windows_hu]
    inferer = SlidingWindowInferer(bundle.patch_ijk, settings.batch_size, overlap=settings.overlap, mode="gaussian")
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    seconds: list[float] = []
    began = time.perf_counter()
    network = bundle.build_network().to(device)
    for _ in range(3):
        image = chain(str(scan))
        channels = torch.cat([window(image) for window in windows])[None].as_tensor().to(device)
        with torch.inference_mode(), torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            probability = inferer(channels, network)[0, :1].float().sigmoid().cpu()
        turned = type(image)(probability, meta=image.meta, applied_operations=image.applied_operations)
        back = chain.inverse(turned)
        mask = (back[0] > settings.threshold).numpy().astype(np.uint8)
        write_volume(scan.parent / "monai.nii.gz", Volume(mask, np.asarray(back.affine)))
        seconds.append(time.perf_counter() - began)
        began = time.perf_counter()
    peak = round(torch.cuda.max_memory_reserved() / 1e9, 3) if device.type == "cuda" else None
    return {"cold_s": round(seconds[0], 3), "warm_s": round(min(seconds[1:]), 3), "peak_gb": peak}
