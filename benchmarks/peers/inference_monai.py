"""MONAI as a contestant of `inference.py`, in gtvray's environment and with the network of the bundle; prints nothing.

From file to file it is MONAI's usual pipeline. On the same grid its sliding window replaces gtvray's, between the same
preparation and restoration, so that only the sliding windows differ.
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


class Chain:
    """MONAI's usual pipeline from a file to a mask, with the network of a bundle.

    Args:
        bundle: with one network.

    Attributes:
        network: counts its patches.
    """

    def __init__(self, bundle: Bundle) -> None:
        from monai import transforms

        self._bundle = bundle
        self.network = Counted(sole_network(bundle))
        self._inferer = sliding_window(bundle)
        self._chain = transforms.Compose(
            [
                transforms.LoadImage(ensure_channel_first=True),
                transforms.Orientation("RAS", labels=None),
                transforms.Spacing(bundle.preprocessing.spacing_mm, mode="bilinear"),
            ]
        )
        self._windows = [
            transforms.ScaleIntensityRange(*w, 0.0, 1.0, clip=True) for w in bundle.preprocessing.windows_hu
        ]

    def segment(self, scan: Path) -> Volume:
        """The mask of a scan on its own grid."""
        import torch

        image = self._chain(str(scan))
        with torch.inference_mode():
            logits = self._inferer(torch.cat([window(image) for window in self._windows])[None], self.network)[0, :1]
        # Resampling and reorientation are inverted linearly, as by Invertd.
        probability = self._chain.inverse(
            type(image)(torch.sigmoid(logits), meta=image.meta, applied_operations=image.applied_operations)
        )
        mask = (probability[0] > self._bundle.inference.threshold).numpy().astype(np.uint8)
        return Volume(mask, np.asarray(probability.affine))


def run_chain(given: argparse.Namespace, out: Path) -> dict[str, Any]:
    """Run MONAI's usual pipeline from file to file, twice or once."""
    began = time.perf_counter()
    chain = Chain(Bundle.load(given.model))
    seconds: list[float] = []
    for _ in range(1 if given.once else 2):
        write_volume(out, chain.segment(given.scan))
        seconds.append(time.perf_counter() - began)
        began = time.perf_counter()
    return {"cold_s": seconds[0], "warm_s": seconds[-1], "patches": chain.network.patches // len(seconds)}


def run_same_grid(given: argparse.Namespace, out: Path) -> dict[str, Any]:
    """Run MONAI's inferer on gtvray's prepared grid of the full scan."""
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
    """Return the network of a bundle, which must not be an ensemble.

    Raises:
        ValueError: it has several networks.
    """
    if bundle.members != 1:
        raise ValueError(f"{bundle.folder}: an ensemble of {bundle.members} networks, but the peers need one")
    return bundle.build_network()


def sliding_window(bundle: Bundle) -> Any:
    """Make MONAI's inferer with the bundle's patch, batch and overlap, and Gaussian weights."""
    from monai.inferers import SlidingWindowInferer

    settings = bundle.inference
    return SlidingWindowInferer(bundle.patch_ijk, settings.batch_size, overlap=settings.overlap, mode="gaussian")


class Counted:
    """A network that counts its input patches.

    Attributes:
        patches: number of patches so far.
    """

    def __init__(self, network: Callable[[Any], Any]) -> None:
        self._network, self.patches = network, 0

    def __call__(self, patches: Any) -> Any:
        """As the network."""
        self.patches += len(patches)
        return self._network(patches)
