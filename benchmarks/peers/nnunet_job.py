"""Input of `inference_nnunet.py`, and restoration of its output; in gtvray's environment.

nnU-Net keeps the axes of a scan as SimpleITK reads them, (z, y, x) of the file, while gtvray reorients to RAS.
From file to file the network is therefore exported with the reorientation: patches have the axes of the file.
Its one logit is paired with zero, since nnU-Net takes the larger of two, and is shifted by the bundle's threshold.
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform
from peers.inference_monai import sole_network

from gtvray.io import read_volume, write_volume
from gtvray.models import Bundle
from gtvray.preprocessing import prepare, restore_mask, to_channels


@dataclass(frozen=True)
class Lie:
    """Relation of the array (z, y, x) of a file to the RAS axes (i, j, k).

    Attributes:
        order: axis of the file for i, j, k.
        flipped: axes of the file with the opposite direction.
    """

    order: tuple[int, ...]
    flipped: tuple[int, ...]

    @classmethod
    def of(cls, affine: Any) -> Lie:
        """Derive it from the affine of a scan."""
        turn = ornt_transform(io_orientation(affine), axcodes2ornt("RAS"))
        order = [2 - int(np.flatnonzero(turn[:, 0] == axis)[0]) for axis in range(3)]
        return cls(tuple(order), tuple(2 - axis for axis in range(3) if turn[axis, 1] < 0))

    @property
    def back(self) -> tuple[int, ...]:
        """The RAS axis for z, y, x."""
        return tuple(self.order.index(axis) for axis in range(3))


UPRIGHT = Lie((0, 1, 2), ())


class AsTheFileLies(torch.nn.Module):
    """A network of RAS patches that takes (b, c, z, y, x) and returns zero and the logit as (b, 2, z, y, x).

    Args:
        network: network of the bundle.
        lie: axes of the file.
        threshold: probability at which the returned logit is 0.
    """

    def __init__(self, network: torch.nn.Module, lie: Lie, threshold: float) -> None:
        super().__init__()
        self.network, self.shift = network, math.log(threshold / (1 - threshold))
        self.flipped = [2 + axis for axis in lie.flipped]
        self.order = [0, 1, *(2 + axis for axis in lie.order)]
        self.back = [0, 1, *(2 + axis for axis in lie.back)]

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        """As the network."""
        logits = self.network(patches.flip(self.flipped).permute(self.order).contiguous())
        lying = logits.permute(self.back).flip(self.flipped) - self.shift
        return torch.cat((torch.zeros_like(lying), lying), dim=1)


def write_job(given: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Write the network and its settings for the file and for gtvray's prepared grid, and the values on that grid."""
    bundle, scan = Bundle.load(given.model), read_volume(given.scan)
    times = 1 if given.once else 2
    write_network(folder / "file", bundle, Lie.of(scan.affine), bundle.inference.threshold, times)
    # Here the threshold is applied by gtvray's restoration.
    write_network(folder / "grid", bundle, UPRIGHT, 0.5, 1)
    prepared = prepare(scan, bundle.preprocessing, full_extent=True)
    channels = to_channels(prepared.hu.array, bundle.preprocessing.windows_hu, prepared.mirrored)
    np.save(folder / "channels.npy", channels)
    return {}


def write_network(folder: Path, bundle: Bundle, lie: Lie, threshold: float, times: int) -> None:
    """Write the network as TorchScript, and the values for nnU-Net's plans, with the axes of the file."""
    folder.mkdir(parents=True)
    patch = [bundle.patch_ijk[axis] for axis in lie.back]
    example = torch.zeros((1, bundle.preprocessing.channels, *patch))
    with torch.inference_mode():
        traced = torch.jit.trace(AsTheFileLies(sole_network(bundle), lie, threshold).eval(), example)
    traced.save(folder / "network.pt")
    job = {
        "patch": patch,
        "spacing_mm": [bundle.preprocessing.spacing_mm[axis] for axis in lie.back],
        "overlap": bundle.inference.overlap,
        "windows_hu": bundle.preprocessing.windows_hu,
        "times": times,
    }
    (folder / "job.json").write_text(json.dumps(job))


def restore_job(given: argparse.Namespace, out: Path) -> dict[str, Any]:
    """Restore the mask from nnU-Net's probabilities in the folder of the job."""
    bundle = Bundle.load(given.model)
    prepared = prepare(read_volume(given.scan), bundle.preprocessing, full_extent=True)
    probability = np.load(out.parent / "job" / "probability.npy")
    write_volume(out, restore_mask(probability, prepared, bundle.inference.threshold))
    return {}
