"""MONAI as a contestant of `inference.py`, in our own environment and with the bundle's network; prints nothing itself.

From file to file it is MONAI's usual chain. On the same grid its sliding window stands between our preparing and our
way back, so that what differs is the sliding window alone.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from gtvray.geometry import Volume
from gtvray.io import read_volume, write_volume
from gtvray.models import Bundle
from gtvray.preprocessing import prepare, restore_mask, to_channels


def run_chain(given: argparse.Namespace, out: Path) -> dict[str, Any]:
    """MONAI's usual chain from file to file, twice, or once."""
    import torch
    from monai import transforms

    began = time.perf_counter()
    bundle = Bundle.load(given.model)
    network = Counted(sole_network(bundle))
    inferer = sliding_window(bundle)
    chain = transforms.Compose(
        [
            transforms.LoadImage(ensure_channel_first=True),
            transforms.Orientation("RAS", labels=None),
            transforms.Spacing(bundle.preprocessing.spacing_mm, mode="bilinear"),
        ]
    )
    windows = [transforms.ScaleIntensityRange(*w, 0.0, 1.0, clip=True) for w in bundle.preprocessing.windows_hu]
    seconds: list[float] = []
    for _ in range(1 if given.once else 2):
        image = chain(str(given.scan))
        with torch.inference_mode():
            logits = inferer(torch.cat([window(image) for window in windows])[None], network)[0, :1]
        # Taken back through the resampling and the axes, as Invertd does it, linearly.
        probability = chain.inverse(
            type(image)(torch.sigmoid(logits), meta=image.meta, applied_operations=image.applied_operations)
        )
        mask = (probability[0] > bundle.inference.threshold).numpy().astype(np.uint8)
        write_volume(out, Volume(mask, np.asarray(probability.affine)))
        seconds.append(time.perf_counter() - began)
        began = time.perf_counter()
    return {"cold_s": seconds[0], "warm_s": seconds[-1], "patches": network.patches // len(seconds)}


def run_same_grid(given: argparse.Namespace, out: Path) -> dict[str, Any]:
    """MONAI's inferer on our prepared grid of the whole scan."""
    import torch

    bundle = Bundle.load(given.model)
    network = sole_network(bundle)
    prepared = prepare(read_volume(given.scan), bundle.preprocessing, full_extent=True)
    channels = to_channels(prepared.hu.array, bundle.preprocessing.windows_hu, prepared.mirrored)
    counted = Counted(network)
    with torch.inference_mode():
        logits = sliding_window(bundle)(torch.from_numpy(channels)[None], counted)[0, 0]
    write_volume(out, restore_mask(logits.sigmoid().numpy(), prepared, bundle.inference.threshold))
    return {"patches": counted.patches}


def sole_network(bundle: Bundle) -> Any:
    """The network of a bundle that is no ensemble: the peers are given one.

    Raises:
        ValueError: it has several.
    """
    if bundle.members != 1:
        raise ValueError(f"{bundle.folder}: an ensemble of {bundle.members}, where the peers are given one network")
    return bundle.build_network()


def sliding_window(bundle: Bundle) -> Any:
    """MONAI's inferer with the bundle's patch, batch and overlap, and Gaussian weights."""
    from monai.inferers import SlidingWindowInferer

    settings = bundle.inference
    return SlidingWindowInferer(bundle.patch_ijk, settings.batch_size, overlap=settings.overlap, mode="gaussian")


class Counted:
    """A network that counts the patches it is given.

    Attributes:
        patches: how many so far.
    """

    def __init__(self, network: Callable[[Any], Any]) -> None:
        self._network, self.patches = network, 0

    def __call__(self, patches: Any) -> Any:
        """As the network."""
        self.patches += len(patches)
        return self._network(patches)
