"""Folders of phantoms: cases are written one by one, and replaced only if no file was modified."""

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
    """Write `count` cases in StructSeg's layout, `folder/N/data.nii.gz` and `label.nii.gz`, with N from 1.

    A case appears under its number only when complete, so that an interrupted call can be repeated. Only one process
    may write to a folder.

    Args:
        folder: a new or empty folder, or one of phantoms.
        count: number of cases.
        seed: determines every voxel.
        report: called with (done, count) after each case.
        overwrite: replace phantoms of another generator version, seed or count, if none of their files was modified.

    Raises:
        InputError: `count` is below 1, or the folder's path has characters that cannot be shown.
        DataError: the folder has other content, which is left unchanged.
    """
    if count < 1:
        raise InputError("the number of phantoms is too small", expected="at least 1", found=str(count))
    require_printable_path(folder)
    parameters = {"phantom_version": PHANTOM_VERSION, "seed": seed, "count": count}
    files = _prepare_folder(folder, parameters, overwrite)
    for number in range(1, count + 1):
        case = folder / str(number)
        paths = [case / name for name in _CASE_FILES]
        if not all(path.is_file() for path in paths):
            _require_no_other_files(case)
            with atomic_dir(case) as partial:
                for path, volume in zip(paths, make_phantom(number, seed), strict=True):
                    write_volume(partial / path.name, volume)
            files |= {f"{number}/{path.name}": sha256_of(path) for path in paths}
            write_json(folder / _RECORD, {**parameters, "files": files})
        if report is not None:
            report(number, count)


def _prepare_folder(folder: Path, parameters: dict[str, int], overwrite: bool) -> dict[str, str]:
    """Keep phantoms of the same parameters, or remove those of other parameters if that is allowed.

    Returns:
        the SHA-256 of every file that is kept, by its path in the folder.
    """
    record = folder / _RECORD
    entries = [entry for entry in folder.iterdir() if not is_system_file(entry.name)] if folder.is_dir() else []
    leftovers = [entry for entry in entries if entry.name.startswith((".partial-", ".retired-"))]
    if folder.is_file() or (not record.is_file() and len(entries) > len(leftovers)):
        do = "choose a new or empty folder, or one with phantoms.json"
        raise DataError("the folder contains other data", where=folder, do=do)
    stored = read_json(record) if record.is_file() else {}
    files: dict[str, str] = stored.get("files", {})
    same = {name: stored.get(name) for name in parameters} == parameters
    if stored and not same:
        _require_replaceable(folder, stored, parameters, overwrite)
    for entry in leftovers:
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    if same:
        return files
    for case in sorted({folder / Path(name).parts[0] for name in files}):
        if case.is_dir():
            # Renamed first, so that a case is never visible half removed.
            shutil.rmtree(case.rename(case.with_name(f".retired-{case.name}")))
    # Written before the first case, so that every case beside it has its parameters.
    write_json(record, {**parameters, "files": {}})
    return {}


def _require_replaceable(
    folder: Path, stored: Mapping[str, Any], parameters: Mapping[str, int], overwrite: bool
) -> None:
    """Refuse to replace phantoms without `overwrite`, or if a file was added or modified."""
    if not overwrite:
        raise DataError(
            "the folder contains other phantoms",
            where=folder,
            expected=_format(parameters),
            found=_format(stored),
            do="add --overwrite to replace them, or choose another folder",
        )
    files: Mapping[str, str] = stored.get("files", {})
    cases = [entry for entry in folder.iterdir() if entry.name.isdecimal()]
    paths = {path.relative_to(folder).as_posix(): path for case in cases for path in (case, *case.rglob("*"))}
    changed = [
        name
        for name, path in paths.items()
        if not path.is_dir() and (path.is_symlink() or files.get(name) != sha256_of(path))
    ]
    if changed:
        raise DataError(
            "the folder contains files that are not unmodified phantoms",
            where=folder,
            found=", ".join(sorted(changed)[:5]),
            do="move them away, or choose another folder",
        )


def _format(parameters: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {parameters.get(name)}" for name in ("count", "seed", "phantom_version"))


def _require_no_other_files(case: Path) -> None:
    """Refuse to replace the folder of an incomplete case that has other files."""
    other = [entry.name for entry in case.iterdir() if entry.name not in _CASE_FILES] if case.is_dir() else []
    if other or (os.path.lexists(case) and (case.is_symlink() or not case.is_dir())):
        do = "move it away, or choose another folder"
        raise DataError("the case folder contains other data", where=case, found=", ".join(other[:5]), do=do)
