"""Phantoms in a folder: written case by case, and replaced only if every file is as it was written."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from gtvray.datasets.phantoms import PHANTOM_VERSION, make_phantom
from gtvray.errors import DataError, InputError
from gtvray.io import (
    atomic_dir,
    is_system_file,
    read_json,
    require_printable_path,
    sha256_of,
    write_json,
    write_volume,
)

_RECORD = "phantoms.json"
_CASE_FILES = ("data.nii.gz", "label.nii.gz")


def write_phantoms(
    folder: Path,
    count: int,
    seed: int,
    report: Callable[[int, int], None] | None = None,
    *,
    overwrite: bool = False,
) -> None:
    """Write `count` cases in StructSeg's layout, `folder/<n>/data.nii.gz` and `label.nii.gz`, n from 1.

    A case appears under its number only when complete, so an interrupted call can be repeated. `report(done, count)`
    follows each case. One writer at a time.

    Args:
        folder: new, empty, or with phantoms.
        count: how many cases.
        seed: decides every voxel.
        report: called after each case.
        overwrite: replace phantoms of another generator version, seed or count, if no file of theirs has changed.

    Raises:
        InputError: `count` is below 1, or the folder's name cannot be shown.
        DataError: the folder holds something that may not be replaced; nothing is touched.
    """
    if count < 1:
        raise InputError("no phantoms asked for", expected="a count of at least 1", found=str(count))
    require_printable_path(folder)
    terms = {"phantom_version": PHANTOM_VERSION, "seed": seed, "count": count}
    files = _claim(folder, terms, overwrite)
    for number in range(1, count + 1):
        case = folder / str(number)
        paths = [case / name for name in _CASE_FILES]
        if not all(path.is_file() for path in paths):
            _require_no_other(case)
            with atomic_dir(case) as partial:
                for path, volume in zip(paths, make_phantom(number, seed), strict=True):
                    write_volume(partial / path.name, volume)
            files |= {f"{number}/{path.name}": sha256_of(path) for path in paths}
            write_json(folder / _RECORD, {**terms, "files": files})
        if report is not None:
            report(number, count)


def _claim(folder: Path, terms: dict[str, int], overwrite: bool) -> dict[str, str]:
    """Make `folder` ours: keep phantoms of the same terms, else remove those of others if that is allowed.

    Returns:
        the sha256 of every file that is kept.
    """
    record = folder / _RECORD
    entries = [entry for entry in folder.iterdir() if not is_system_file(entry.name)] if folder.is_dir() else []
    leftovers = [entry for entry in entries if entry.name.startswith((".partial-", ".retired-"))]
    if folder.is_file() or (not record.is_file() and len(entries) > len(leftovers)):
        do = "choose a new or empty folder, or one with phantoms.json"
        raise DataError("there is other data in the phantoms' place", where=folder, do=do)
    stored = read_json(record) if record.is_file() else {}
    files: dict[str, str] = stored.get("files", {})
    same = {name: stored.get(name) for name in terms} == terms
    if stored and not same:
        _require_replaceable(folder, stored, overwrite)
    for entry in leftovers:
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    if same:
        return files
    for case in sorted({folder / Path(name).parts[0] for name in files}):
        if case.is_dir():
            # Renamed first: a case is never seen half removed.
            shutil.rmtree(case.rename(case.with_name(f".retired-{case.name}")))
    # Written before the first case: whatever lies beside it was then made to its terms.
    write_json(record, {**terms, "files": {}})
    return {}


def _require_replaceable(folder: Path, stored: Mapping[str, Any], overwrite: bool) -> None:
    """Refuse to replace phantoms unless asked to, and unless every case is as it was written."""
    terms = ", ".join(f"{name} {stored.get(name)}" for name in ("count", "seed", "phantom_version"))
    if not overwrite:
        do = "add --overwrite to replace them, or choose another folder"
        raise DataError("there are other phantoms in this folder", where=folder, found=terms, do=do)
    files: Mapping[str, str] = stored.get("files", {})
    cases = [entry for entry in folder.iterdir() if entry.name.isdecimal()]
    there = {path.relative_to(folder).as_posix(): path for case in cases for path in (case, *case.rglob("*"))}
    changed = [
        name
        for name, path in there.items()
        if not path.is_dir() and (path.is_symlink() or files.get(name) != sha256_of(path))
    ]
    if changed:
        raise DataError(
            "the folder holds files that are not phantoms as they were written",
            where=folder,
            found=", ".join(sorted(changed)[:5]),
            do="move them away, or choose another folder",
        )


def _require_no_other(case: Path) -> None:
    """Refuse to replace the folder of an incomplete case in which there is anything else."""
    other = [entry.name for entry in case.iterdir() if entry.name not in _CASE_FILES] if case.is_dir() else []
    if other or (os.path.lexists(case) and (case.is_symlink() or not case.is_dir())):
        do = "move it away, or choose another folder"
        raise DataError("there is other data in a phantom's place", where=case, found=", ".join(other[:5]), do=do)
