"""A blind export: scans only, under neutral numbers, for a test whose organisers or raters must not know the cases.

What stays is what a scan needs: voxels and their place. Headers are written anew, so no free text goes along, and
neither file names, nor their order, nor their times tell which case is which. The key stays here.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gtvray.datasets.layouts import nnunet
from gtvray.datasets.layouts.cases import ENDINGS, LayoutName, as_binary, require_file, require_grid, split_ending
from gtvray.datasets.layouts.find import LAYOUTS, find_dataset
from gtvray.datasets.layouts.transfer import new_dataset, write_index
from gtvray.errors import DataError, InputError
from gtvray.geometry import Volume
from gtvray.io import read_json, read_labels, read_volume, require_distinct, sha256_of, write_json, write_volume

_KEY_VERSION = 1
_STRUCTURE = "target"


@dataclass(frozen=True)
class Blinded:
    """What was written: the folder to hand on, and the key to keep."""

    folder: Path
    key: Path
    layout: LayoutName
    cases: int


@dataclass(frozen=True)
class Unblinded:
    """Masks of a blind export under their case ids.

    Attributes:
        folder: where they were written.
        cases: their ids.
        empty: those whose mask has no voxel, as a prediction that found nothing has none.
        rounded: those whose stored values were not whole numbers, with how far they were from these.
    """

    folder: Path
    cases: tuple[str, ...]
    empty: tuple[str, ...]
    rounded: Mapping[str, str]


def export_blind(
    source: Path,
    target: Path,
    layout: LayoutName,
    *,
    key: Path,
    seed: int | None = None,
    report: Callable[[int, int], None] | None = None,
) -> Blinded:
    """Write the scans of a dataset under shuffled numbers, and the key to them elsewhere.

    Args:
        source: the dataset, with or without masks.
        target: a new or empty folder.
        layout: how to write it.
        key: a new file outside of the target, readable for its owner only.
        seed: decides the order; drawn at random if none is given, as who knows it and the cases could undo it.
        report: told (done, all) after each case.

    Raises:
        InputError: the target is not empty, or the key is there already or would go along with the scans.
        DataError: no case.
        VolumeError: a damaged file.
        ResourceError: the disk is full.
    """
    if layout == "nnunet":
        nnunet.require_name(target)
    if target.resolve() in key.resolve().parents:
        raise InputError("the key would go along with the scans", where=key, do="keep it in another folder")
    if os.path.lexists(key):
        raise InputError("there is a key already", where=key, do="name another: without its key an export stays blind")
    seed = secrets.randbits(32) if seed is None else seed
    with new_dataset(target, source) as partial:
        cases = find_dataset(source, with_test=True).cases
        width = max(3, len(str(len(cases))))
        order = np.random.default_rng(seed).permutation(len(cases))
        numbers = {f"{number:0{width}d}": cases[place] for number, place in enumerate(order, 1)}
        labelled = dict.fromkeys(numbers, False)
        places = LAYOUTS[layout].places(labelled)
        entries: dict[str, dict[str, Any]] = {}
        for number, case in numbers.items():
            volume = read_volume(case.image)
            write_volume(partial / places[number][0], volume)
            entries[number] = {
                "case_id": case.case_id,
                "shape": list(volume.shape),
                "affine": volume.affine.tolist(),
                "image_sha256": sha256_of(case.image),
            }
            if report is not None:
                report(len(entries), len(cases))
        write_index(partial, layout, labelled, _STRUCTURE, {})
        for entry in partial.rglob("*"):
            os.utime(entry, (0, 0))
        # Before the folder appears: without its key it would be of no use.
        write_json(key, {"schema_version": _KEY_VERSION, "seed": seed, "cases": entries})
        key.chmod(0o600)
    return Blinded(target, key, layout, len(entries))


def unblind(masks: Path, key: Path, target: Path, report: Callable[[int, int], None] | None = None) -> Unblinded:
    """Bring masks that bear the numbers of a blind export back to their cases, as `<case>.nii.gz`.

    Args:
        masks: holds `<number>.nii.gz`, or `<number>/label.nii.gz`; .nii and .nrrd as well.
        key: what `export_blind` wrote.
        target: a new or empty folder.
        report: called with (done, all) after each case.

    Raises:
        NotFoundError: no such key.
        InputError: it is not a key, or the target is not empty.
        DataError: a mask is missing, is of no number in the key, or holds other values than 0 and 1.
        GeometryError: a mask does not lie on the grid of its case's scan.
    """
    entries = _read_key(key)
    found = _numbered(masks)
    missing, unknown = [n for n in entries if n not in found], [n for n in found if n not in entries]
    if missing or unknown:
        raise DataError(
            "the masks are not those of this key",
            where=masks,
            expected=f"{len(entries)} masks, {min(entries)} to {max(entries)}",
            found="; ".join(
                f"{what} {', '.join(numbers[:5])}" for what, numbers in (("no", missing), ("also", unknown)) if numbers
            ),
        )
    done: list[str] = []
    require_distinct(target / f"{entry['case_id']}.nii.gz" for entry in entries.values())
    empty: list[str] = []
    rounded: dict[str, str] = {}
    with new_dataset(target, masks) as partial:
        for number, entry in entries.items():
            case_id, file = entry["case_id"], found[number]
            labels = read_labels(file)
            grid = Volume(np.broadcast_to(np.uint8(0), entry["shape"]), np.array(entry["affine"]))
            require_grid(labels.volume, grid, file, do="predict on the exported scans as they are")
            mask = as_binary(labels.volume, file).array
            write_volume(partial / f"{case_id}.nii.gz", grid.with_array(mask))
            done.append(case_id)
            empty += [] if mask.any() else [case_id]
            rounded |= {case_id: labels.note} if labels.note else {}
            if report is not None:
                report(len(done), len(entries))
    return Unblinded(target, tuple(done), tuple(empty), rounded)


def _read_key(key: Path) -> dict[str, dict[str, Any]]:
    stored = read_json(key)
    if not isinstance(stored, dict) or stored.get("schema_version") != _KEY_VERSION or not stored.get("cases"):
        raise InputError("not the key of a blind export", where=key, expected="what gtvray data export --blind wrote")
    entries: dict[str, dict[str, Any]] = stored["cases"]
    for entry in entries.values():
        # The id becomes a file's name.
        if (
            set(entry) != {"case_id", "shape", "affine", "image_sha256"}
            or Path(entry["case_id"]).name != entry["case_id"]
        ):
            raise InputError("the key has been changed", where=key, found=", ".join(entry))
    return entries


def _numbered(masks: Path) -> dict[str, Path]:
    """Mask files by the number they are named by."""
    if not masks.is_dir():
        raise DataError("no such folder", where=masks)
    found: dict[str, Path] = {}
    for entry in sorted(masks.iterdir()):
        inside = [entry / f"label{ending}" for ending in ENDINGS if (entry / f"label{ending}").is_file()]
        parts = (entry.name, "") if inside else split_ending(entry.name)
        if parts is None:
            continue
        if parts[0] in found or len(inside) > 1:
            raise DataError("two masks for one number", where=masks, found=parts[0], do="keep the right one")
        found[parts[0]] = inside[0] if inside else require_file(entry)
    return found
