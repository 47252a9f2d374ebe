"""Blind export: the scans of a dataset under shuffled numbers, for tests whose raters must not know the cases.

Only voxels and affines are exported. Headers are written anew, without free text, and neither file names nor their
order nor their times identify a case. The key that maps numbers to case ids is kept apart.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gtvray.datasets.layouts import LayoutName
from gtvray.datasets.layouts.cases import ENDINGS, as_binary, require_file, require_grid, split_ending
from gtvray.datasets.layouts.find import find_dataset
from gtvray.datasets.layouts.registry import LAYOUTS
from gtvray.datasets.layouts.transfer import new_dataset, write_manifest
from gtvray.errors import DataError, InputError
from gtvray.geometry import Volume
from gtvray.io import read_json, read_labels, read_volume, require_distinct, sha256_of, write_json, write_volume

_KEY_VERSION = 1
_STRUCTURE = "target"


@dataclass(frozen=True)
class BlindExport:
    """Result of a blind export.

    Attributes:
        folder: the scans, to be passed on.
        key: the key, to be kept.
        layout: layout of the folder.
        cases: number of scans.
    """

    folder: Path
    key: Path
    layout: LayoutName
    cases: int


@dataclass(frozen=True)
class Unblinded:
    """Masks of a blind export under their case ids.

    Attributes:
        folder: the folder of the masks.
        cases: their case ids.
        empty: case ids of empty masks, such as predictions without a finding.
        rounded: case id -> deviation of the stored values from integers, where there was one.
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
) -> BlindExport:
    """Write the scans of a dataset under shuffled numbers, and the key to another folder.

    Args:
        source: the dataset, with or without masks.
        target: a new or empty folder.
        layout: layout to write.
        key: a new file outside of the target, readable by its owner only.
        seed: determines the order; random by default, since the seed and the case ids reveal the order.
        report: called with (done, total) after each case.

    Raises:
        InputError: the target is not empty, or the key exists or is in the target.
        DataError: no case.
        VolumeError: a damaged file.
        ResourceError: the disk is full.
    """
    LAYOUTS[layout].require_name(target)
    if target.resolve() in key.resolve().parents:
        raise InputError("the key would be passed on with the scans", where=key, do="choose another folder for it")
    if os.path.lexists(key):
        raise InputError(
            "the key file exists", where=key, do="choose another file: an export without its key cannot be unblinded"
        )
    seed = secrets.randbits(32) if seed is None else seed
    with new_dataset(target, source) as partial:
        cases = find_dataset(source, with_test=True).cases
        width = max(3, len(str(len(cases))))
        order = np.random.default_rng(seed).permutation(len(cases))
        numbers = {f"{number:0{width}d}": cases[index] for number, index in enumerate(order, 1)}
        labelled = dict.fromkeys(numbers, False)
        paths = LAYOUTS[layout].file_paths(labelled)
        entries: dict[str, dict[str, Any]] = {}
        for number, case in numbers.items():
            volume = read_volume(case.image)
            write_volume(partial / paths[number][0], volume)
            entries[number] = {
                "case_id": case.case_id,
                "shape": list(volume.shape),
                "affine": volume.affine.tolist(),
                "image_sha256": sha256_of(case.image),
            }
            if report is not None:
                report(len(entries), len(cases))
        write_manifest(partial, layout, labelled, _STRUCTURE, {})
        for entry in partial.rglob("*"):
            os.utime(entry, (0, 0))
        # Written before the folder appears, since the export is useless without its key.
        write_json(key, {"schema_version": _KEY_VERSION, "seed": seed, "cases": entries})
        key.chmod(0o600)
    return BlindExport(target, key, layout, len(entries))


def unblind(masks: Path, key: Path, target: Path, report: Callable[[int, int], None] | None = None) -> Unblinded:
    """Write masks named by the numbers of a blind export as `CASE.nii.gz`.

    Args:
        masks: holds `NUMBER.nii.gz` or `NUMBER/label.nii.gz`; .nii and .nrrd are accepted too.
        key: the key that `export_blind` wrote.
        target: a new or empty folder.
        report: called with (done, total) after each case.

    Raises:
        NotFoundError: no such key.
        InputError: the file is not a key, or the target is not empty.
        DataError: a mask is missing, its number is not in the key, or it has other values than 0 and 1.
        GeometryError: a mask is not on the grid of its scan.
    """
    entries = _read_key(key)
    found = _find_masks(masks)
    missing, unknown = [n for n in entries if n not in found], [n for n in found if n not in entries]
    if missing or unknown:
        raise DataError(
            "the masks do not match this key",
            where=masks,
            expected=f"{len(entries)} masks, {min(entries)} to {max(entries)}",
            found="; ".join(
                f"{kind} {', '.join(numbers[:5])}"
                for kind, numbers in (("missing", missing), ("unknown", unknown))
                if numbers
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
            require_grid(labels.volume, grid, file, do="predict on the unchanged exported scans")
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
        raise InputError("not the key of a blind export", where=key, expected="a key of gtvray data export --blind")
    entries: dict[str, dict[str, Any]] = stored["cases"]
    for entry in entries.values():
        # The id becomes a file name.
        if (
            set(entry) != {"case_id", "shape", "affine", "image_sha256"}
            or Path(entry["case_id"]).name != entry["case_id"]
        ):
            raise InputError("the key was modified", where=key, found=", ".join(entry))
    return entries


def _find_masks(masks: Path) -> dict[str, Path]:
    """Find mask files by number."""
    if not masks.is_dir():
        raise DataError("no such folder", where=masks)
    found: dict[str, Path] = {}
    for entry in sorted(masks.iterdir()):
        inside = [entry / f"label{ending}" for ending in ENDINGS if (entry / f"label{ending}").is_file()]
        parts = (entry.name, "") if inside else split_ending(entry.name)
        if parts is None:
            continue
        if parts[0] in found or len(inside) > 1:
            raise DataError("two masks for one number", where=masks, found=parts[0], do="keep the correct one")
        found[parts[0]] = inside[0] if inside else require_file(entry)
    return found
