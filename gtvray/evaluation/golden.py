"""Golden cases: parts of held-out scans with the promoted model's masks, which another host must reproduce.

A part is a ball inside the body around the mask, on the scan's own grid (`gtvray.evaluation.interior`), so that
preprocessing, network and restoring all run again, and neither face nor skin leaves the machine. The mask is that of
the part, not of the full scan. Names and ids of cases are not stored. Earlier versions stored the scan within 50 mm of
the mask, which can show a face; such golden cases are still read.

golden.json             the model's digest, threads and package versions it ran with, sha256 of each file
scan-0.nii.gz ...       parts of scans
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

from gtvray.datasets import make_phantom, read_binary
from gtvray.errors import BundleError, DataError, InputError, NotReproducedError
from gtvray.evaluation.interior import keep_interior
from gtvray.evaluation.metrics import dice
from gtvray.evaluation.scoring import ScoredCase
from gtvray.geometry import Volume
from gtvray.io import atomic_dir, read_json, read_volume, sha256_of, write_json, write_volume

if TYPE_CHECKING:
    from gtvray.inference import Predictor

REPRODUCED_DICE = 0.999
_CASES = 3
# Scans tried for masks that are not empty, beyond the first ones.
_TRIES = 12
_GOLDEN = "golden.json"
_PACKAGES = ("gtvray", "torch", "numpy", "openvino")


@dataclass(frozen=True)
class Reproduced:
    """Result of a golden case on this host.

    Attributes:
        case: number of the golden case.
        dice: Dice of the mask predicted here and the golden one; 1 if both are empty.
        identical: whether they are equal voxel for voxel.
    """

    case: int
    dice: float
    identical: bool

    @property
    def ok(self) -> bool:
        """Whether the mask agrees with the golden one to `REPRODUCED_DICE`."""
        return self.dice >= REPRODUCED_DICE


def write_golden(folder: Path, predictor: Predictor, scored: Sequence[ScoredCase], threads: int) -> None:
    """Write golden cases of the scored cases with the largest, the median and the smallest predicted mask.

    Other cases are used for those whose interior has an empty mask; empty masks only if there are no others. If no scan
    has an interior that can be stored, a phantom is used.

    Args:
        folder: their folder, written atomically.
        predictor: predictor of the promoted model, with which the cases were scored.
        scored: held-out cases with their predicted masks.
        threads: CPU threads it ran with.
    """
    with atomic_dir(folder) as temporary:
        for number, (scan, mask) in enumerate(_golden_cases(predictor, scored)):
            write_volume(temporary / f"scan-{number}.nii.gz", scan)
            write_volume(temporary / f"mask-{number}.nii.gz", mask)
        files = {file.name: sha256_of(file) for file in sorted(temporary.iterdir())}
        index = {"digest": predictor.bundle.digest, "threads": threads, "stack": stack(), "files": files}
        write_json(temporary / _GOLDEN, index)


def golden_threads(folder: Path) -> int:
    """CPU threads that golden masks were predicted with; their number affects floating-point summation order."""
    return int(_read_index(folder)["threads"])


def golden_digest(folder: Path) -> str:
    """Digest of the bundle that golden cases belong to.

    Raises:
        BundleError: they are damaged.
    """
    return str(_read_index(folder)["digest"])


def reproduce(folder: Path, predictor: Predictor) -> list[Reproduced]:
    """Predict every golden case on this host and compare the masks.

    Raises:
        BundleError: the golden cases are damaged or belong to another model.
    """
    index = _read_index(folder)
    if index["digest"] != predictor.bundle.digest:
        raise BundleError(
            "golden cases belong to another model",
            where=folder,
            expected=predictor.bundle.digest,
            found=index["digest"],
            do="promote the model again to write its golden cases",
        )
    results = []
    for number in range(len(index["files"]) // 2):
        expected = read_binary(folder / f"mask-{number}.nii.gz").array > 0
        found = predictor.predict(read_volume(folder / f"scan-{number}.nii.gz"), f"golden case {number}").array > 0
        results.append(Reproduced(number, dice(expected, found), bool(np.array_equal(expected, found))))
    return results


def require_reproduced(folder: Path, predictor: Predictor) -> None:
    """Refuse a host that predicts other masks of the golden cases than those of the promotion.

    Raises:
        NotReproducedError: names the cases and this host.
        BundleError: as `reproduce`.
    """
    failed = [result for result in reproduce(folder, predictor) if not result.ok]
    if failed:
        raise NotReproducedError(
            "the model's golden cases are not reproduced",
            where=platform.node(),
            expected=f"the promotion's masks, with a Dice of at least {REPRODUCED_DICE:g}",
            found=", ".join(f"golden case {result.case}: Dice {result.dice:.5f}" for result in failed),
            do="use the versions listed in golden.json, with which it was promoted, or promote it again",
        )


def stack() -> dict[str, str]:
    """Package versions and machine, on which the last bits of a mask depend."""
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {**versions, "python": platform.python_version(), "machine": platform.machine()}


def _read_index(folder: Path) -> dict[str, Any]:
    """Read `golden.json` and verify the digest of every file."""
    try:
        index: dict[str, Any] = read_json(folder / _GOLDEN)
        changed = [name for name, digest in index["files"].items() if sha256_of(folder / name) != digest]
    except (InputError, OSError, KeyError, TypeError, AttributeError) as error:
        raise BundleError(
            "golden cases are incomplete", where=folder, found=error, do="promote the model again to write them"
        ) from error
    if changed:
        raise BundleError(
            "golden cases are damaged",
            where=folder,
            expected=f"the sha256 in {_GOLDEN}",
            found=f"changed: {', '.join(changed)}",
            do="promote the model again to write them",
        )
    return index


def _golden_cases(predictor: Predictor, scored: Sequence[ScoredCase]) -> list[tuple[Volume, Volume]]:
    """Parts of scans and the model's masks of them."""
    found: list[tuple[Volume, Volume]] = []
    empty: list[tuple[Volume, Volume]] = []
    for entry in _by_preference(scored)[: _CASES + _TRIES]:
        if len(found) == _CASES:
            break
        try:
            scan = keep_interior(read_volume(entry.case.image), read_binary(entry.mask).array)
            mask = predictor.predict(scan)
        except DataError:
            # Too small, or without the air that preprocessing requires.
            continue
        (found if mask.array.any() else empty).append((scan, mask))
    kept = (found + empty)[:_CASES]
    if not kept:
        phantom, _ = make_phantom(0, seed=0)
        kept = [(phantom, predictor.predict(phantom))]
    return kept


def _by_preference(scored: Sequence[ScoredCase]) -> list[ScoredCase]:
    """The cases with the largest, the median and the smallest mask, then the others; those with empty masks last."""
    volumes = [int(np.count_nonzero(read_binary(entry.mask).array)) for entry in scored]
    order = sorted(range(len(scored)), key=lambda number: -volumes[number])
    nonempty = [number for number in order if volumes[number]] or order
    first = dict.fromkeys(nonempty[position] for position in (0, len(nonempty) // 2, len(nonempty) - 1))
    return [scored[number] for number in dict.fromkeys([*first, *order])]
