"""Golden cases: pieces of held-out scans with the masks the promoted model gave, to be reproduced on any other stack.

A piece is the scan about the mask, on the scan's own grid, so that preparing, network and the way back are all repeated
and no whole head is passed on. Names and ids of the cases are not.

golden.json             the model's digest, the threads and versions it ran with, sha256 of each file
scan-0.nii.gz ...       pieces of scans
mask-0.nii.gz ...       their masks
"""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gtvray.datasets import read_binary
from gtvray.errors import BundleError, DataError, InputError
from gtvray.evaluation.metrics import dice
from gtvray.evaluation.scoring import ScoredCase
from gtvray.geometry import Box, Volume
from gtvray.io import atomic_dir, read_json, read_volume, sha256_of, write_json, write_volume

if TYPE_CHECKING:
    from gtvray.inference import Predictor

REPRODUCED_DICE = 0.999
_CASES = 3
_MARGIN_MM = 50.0
_GOLDEN = "golden.json"
_PACKAGES = ("gtvray", "torch", "numpy", "openvino")


@dataclass(frozen=True)
class Reproduced:
    """A golden case on this host.

    Attributes:
        case: its number.
        dice: of the mask made here with the golden one; 1 where both are empty.
        identical: whether they are equal voxel for voxel.
    """

    case: int
    dice: float
    identical: bool

    @property
    def ok(self) -> bool:
        """Whether the model does here what it was promoted for."""
        return self.dice >= REPRODUCED_DICE


def write_golden(folder: Path, predictor: Predictor, scored: Sequence[ScoredCase], threads: int) -> None:
    """Make golden cases of scored ones: those of the largest, the middle and the smallest mask, empty ones last.

    Args:
        folder: theirs; written whole or not at all.
        predictor: of the promoted model, as it scored them.
        scored: held-out cases with the masks it gave.
        threads: that it ran with.
    """
    with atomic_dir(folder) as temporary:
        for number, entry in enumerate(_chosen(scored)):
            piece, mask = _piece(predictor, read_volume(entry.case.image), read_binary(entry.mask))
            write_volume(temporary / f"scan-{number}.nii.gz", piece)
            write_volume(temporary / f"mask-{number}.nii.gz", mask)
        files = {file.name: sha256_of(file) for file in sorted(temporary.iterdir())}
        about = {"digest": predictor.bundle.digest, "threads": threads, "stack": stack()}
        write_json(temporary / _GOLDEN, {**about, "files": files})


def golden_threads(folder: Path) -> int:
    """The CPU threads that golden masks were made with; with others, sums of floats are split otherwise."""
    return int(_read(folder)["threads"])


def reproduce(folder: Path, predictor: Predictor) -> list[Reproduced]:
    """Run every golden case here.

    Raises:
        BundleError: they are damaged, or another model's.
    """
    about = _read(folder)
    if about["digest"] != predictor.bundle.digest:
        raise BundleError(
            "golden cases are another model's", where=folder, expected=predictor.bundle.digest, found=about["digest"]
        )
    results = []
    for number in range(len(about["files"]) // 2):
        expected = read_binary(folder / f"mask-{number}.nii.gz").array > 0
        found = predictor.predict(read_volume(folder / f"scan-{number}.nii.gz"), f"golden case {number}").array > 0
        results.append(Reproduced(number, dice(expected, found), bool(np.array_equal(expected, found))))
    return results


def stack() -> dict[str, str]:
    """What a mask's last bits hang on: versions and machine."""
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {**versions, "python": platform.python_version(), "machine": platform.machine()}


def _read(folder: Path) -> dict[str, Any]:
    try:
        about: dict[str, Any] = read_json(folder / _GOLDEN)
        changed = [name for name, digest in about["files"].items() if sha256_of(folder / name) != digest]
    except (InputError, OSError, KeyError, TypeError, AttributeError) as error:
        raise BundleError("golden cases are not whole", where=folder, found=error) from error
    if changed:
        raise BundleError("golden cases are not what they were", where=folder, found=", ".join(changed))
    return about


def _chosen(scored: Sequence[ScoredCase]) -> list[ScoredCase]:
    by_volume = sorted(scored, key=lambda entry: -int(np.count_nonzero(read_binary(entry.mask).array)))
    marked = [entry for entry in by_volume if read_binary(entry.mask).array.any()] or by_volume
    places = dict.fromkeys((0, len(marked) // 2, len(marked) - 1))
    return [marked[place] for place in places][:_CASES]


def _piece(predictor: Predictor, scan: Volume, mask: Volume) -> tuple[Volume, Volume]:
    """The scan about the mask, and the model's mask of that; or the whole scan: nothing is marked, or no air near."""
    box = Box.around(mask.array)
    if box is not None:
        i, j, k = (round(_MARGIN_MM / spacing) for spacing in scan.spacing_mm)
        piece = scan.cropped(box.grown((i, j, k), scan.shape))
        try:
            return piece, predictor.predict(piece)
        except DataError:
            pass
    return scan, mask
