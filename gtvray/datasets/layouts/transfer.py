"""Conversion of a dataset to another layout, with unchanged voxels and affines.

Compressed NIfTI-1 files are copied byte for byte, never linked, so that editing the copy leaves the original unchanged.
Other files are rewritten. Every scan and mask is read, so that damaged files are not passed on.
"""

from __future__ import annotations

import gzip
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gtvray.datasets.layouts import LayoutName
from gtvray.datasets.layouts.cases import Case, Dataset, as_binary, read_mask
from gtvray.datasets.layouts.find import find_dataset, format_labels, require_one_structure
from gtvray.datasets.layouts.manifest import MANIFEST, RECORD
from gtvray.datasets.layouts.patients import copy_patients
from gtvray.datasets.layouts.registry import LAYOUTS
from gtvray.errors import DataError, InputError
from gtvray.geometry import Volume
from gtvray.io import (
    atomic_dir,
    format_distinct,
    is_system_file,
    read_volume,
    require_distinct,
    require_printable_path,
    write_json,
    write_volume,
)

# Two full-size scans with masks use about 200 MB and keep two cores busy.
_WORKERS = 2
_RECORD_VERSION = 1
_SHOWN = 8


@dataclass(frozen=True)
class Transferred:
    """Result of a conversion.

    Attributes:
        folder: the new dataset.
        layout: its layout.
        structure: the structure of its masks.
        cases: number of cases.
        test_cases: number of cases without a mask.
        copied: number of files copied byte for byte.
        rewritten: number of files rewritten.
        rounded: case id -> deviation of the mask's stored values from integers, where there was one.
    """

    folder: Path
    layout: LayoutName
    structure: str
    cases: int
    test_cases: int
    copied: int
    rewritten: int
    rounded: Mapping[str, str]


@dataclass(frozen=True)
class _Structure:
    """The structure to keep: its name and its values; None if the masks hold only 0 and 1."""

    name: str
    values: tuple[int, ...] | None


@dataclass(frozen=True)
class _Written:
    """How the files of a case were written, for the record.

    Attributes:
        image, label: "copied" or "rewritten".
        present: the stored labels, if the chosen structure is not among them.
        note: deviation of the mask's stored values from integers.
    """

    image: str
    label: str | None
    present: str | None = None
    note: str = ""


def transfer(
    source: Path,
    target: Path,
    layout: LayoutName,
    *,
    label: str | None = None,
    report: Callable[[int, int], None] | None = None,
) -> Transferred:
    """Convert a dataset to a layout, optionally keeping one structure of several.

    Case ids are unchanged; `transfer.json` records how each file was written.

    Args:
        source: the dataset.
        target: a new or empty folder.
        layout: layout to write.
        label: name or value of the structure to keep; required if masks hold several.
        report: called with (done, total) after each case.

    Raises:
        InputError: the target is not empty, is inside the source, or has a name that the layout does not accept.
        DataError: several structures and none chosen, no such structure, a mask whose values are not labels, or a mask
            without a voxel of the structure.
        GeometryError: a mask is not on its scan's grid.
        VolumeError: a damaged file.
        ResourceError: the disk is full.
    """
    LAYOUTS[layout].require_name(target)
    with new_dataset(target, source) as partial:
        dataset = find_dataset(source, with_test=True)
        chosen = _choose(dataset, label)
        labelled = {case.case_id: case.label is not None for case in dataset.cases}
        paths = LAYOUTS[layout].file_paths(labelled)
        # On file systems that ignore letter case, two such ids would overwrite each other.
        require_distinct(partial / path for pair in paths.values() for path in pair if path is not None)

        def write(case: Case) -> _Written:
            return _write(case, paths[case.case_id], partial, chosen)

        written = {}
        with _workers() as pool:
            for case, outcome in zip(dataset.cases, pool.map(write, dataset.cases), strict=True):
                written[case.case_id] = outcome
                if report is not None:
                    report(len(written), len(dataset.cases))
        _require_voxels(source, chosen, written)
        write_manifest(partial, layout, labelled, chosen.name, dataset.about)
        copy_patients(dataset, partial)
        _record(partial, dataset, layout, chosen.name, written)
    files = [how for each in written.values() for how in (each.image, each.label) if how is not None]
    return Transferred(
        folder=target,
        layout=layout,
        structure=chosen.name,
        cases=len(written),
        test_cases=sum(not has_mask for has_mask in labelled.values()),
        copied=files.count("copied"),
        rewritten=files.count("rewritten"),
        rounded={name: each.note for name, each in written.items() if each.note},
    )


@contextmanager
def new_dataset(target: Path, source: Path) -> Iterator[Path]:
    """Yield a temporary folder that becomes `target` on success; existing files are never replaced.

    Raises:
        InputError: `target` is not a new or empty folder, or is inside `source`.
        ResourceError: the disk is full.
    """
    if source.resolve() in (target.resolve(), *target.resolve().parents):
        raise InputError("the new dataset would be inside the source", where=target, do="choose another folder")
    _require_empty(target)
    with atomic_dir(target) as partial:
        yield partial
        # Another process may have written to it meanwhile.
        _require_empty(target)


def write_manifest(
    folder: Path, layout: LayoutName, labelled: Mapping[str, bool], structure: str, about: Mapping[str, str]
) -> None:
    """Write dataset.json and make the folders that readers of the layout expect, if it has them."""
    manifest = LAYOUTS[layout].make_manifest(labelled, structure, about)
    if manifest is not None:
        write_json(folder / MANIFEST, manifest)
    for name in LAYOUTS[layout].FOLDERS:
        (folder / name).mkdir(exist_ok=True)


def _require_empty(target: Path) -> None:
    require_printable_path(target)
    if os.path.lexists(target) and not (
        target.is_dir() and all(is_system_file(entry.name) for entry in target.iterdir())
    ):
        raise InputError("the target is not empty", where=target, do="choose a new or empty folder")


@contextmanager
def _workers() -> Iterator[ThreadPoolExecutor]:
    pool = ThreadPoolExecutor(_WORKERS)
    try:
        yield pool
    finally:
        # After an error or Ctrl-C, queued cases are dropped.
        pool.shutdown(cancel_futures=True)


def _choose(dataset: Dataset, label: str | None) -> _Structure:
    labels = dataset.labels
    if label is None:
        require_one_structure(dataset)
        return _Structure(dataset.structure, None)
    if label in labels:
        return _Structure(label, labels[label])
    if label.isdecimal() and int(label) > 0:
        value = int(label)
        if not labels:
            return _Structure(f"label_{value}", (value,))
        name = next((name for name, values in labels.items() if values == (value,)), None)
        if name is not None:
            return _Structure(name, (value,))
    raise DataError(
        "no such structure",
        where=dataset.root,
        expected=format_labels(dataset) or "a value from 1, since this layout has no label names",
        found=label,
    )


def _write(case: Case, paths: tuple[str, str | None], folder: Path, chosen: _Structure) -> _Written:
    image = read_volume(case.image)
    image_path, label_path = paths
    image_action = _copy_or_rewrite(case.image, image, folder / image_path)
    if label_path is None or case.label is None:
        return _Written(image_action, None)
    stored = read_mask(case, image)
    if chosen.values is None:
        mask = as_binary(stored.volume, case.label)
    else:
        mask = stored.volume.with_array(np.isin(stored.volume.array, chosen.values))
    # Other readers may interpret scaled or rounded values differently, so such a file is never copied.
    if chosen.values is None and stored.exact:
        label_action = _copy_or_rewrite(case.label, None, folder / label_path)
    else:
        write_volume(folder / label_path, mask)
        label_action = "rewritten"
    present = None if mask.array.any() else format_distinct(stored.volume.array, _SHOWN)
    return _Written(image_action, label_action, present, stored.note)


def _require_voxels(source: Path, chosen: _Structure, written: Mapping[str, _Written]) -> None:
    """Refuse a dataset with a mask that has no voxel of the structure."""
    masks = sum(each.label is not None for each in written.values())
    empty = {name: each.present for name, each in written.items() if each.present is not None}
    if not empty:
        return
    named = ", ".join(f"{name} (values {present})" for name, present in list(empty.items())[:_SHOWN])
    value = "" if chosen.values is None else f" (value {'+'.join(map(str, chosen.values))})"
    raise DataError(
        f"no voxel of {chosen.name}{value} in {len(empty)} of {masks} masks",
        where=source,
        found=f"case {named}{', ...' if len(empty) > _SHOWN else ''}",
        do="choose another structure, or move these cases away; nothing was written",
    )


def _copy_or_rewrite(source: Path, volume: Volume | None, target: Path) -> str:
    """Copy a file of compressed NIfTI-1; rewrite any other file, reading it unless its volume is given."""
    if source.name.lower().endswith(".nii.gz") and _is_packed_nifti1(source):
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
        return "copied"
    write_volume(target, read_volume(source) if volume is None else volume)
    return "rewritten"


def _is_packed_nifti1(path: Path) -> bool:
    # nnU-Net's reader relies on the file name, and does not support NIfTI-2.
    try:
        with gzip.open(path) as file:
            size = file.read(4)
    except gzip.BadGzipFile:
        return False
    return 348 in (int.from_bytes(size, "little"), int.from_bytes(size, "big"))


def _record(
    folder: Path, dataset: Dataset, layout: LayoutName, structure: str, written: Mapping[str, _Written]
) -> None:
    write_json(
        folder / RECORD,
        {
            "schema_version": _RECORD_VERSION,
            "source_layout": dataset.layout,
            "layout": layout,
            "structure": structure,
            "about": dict(dataset.about),
            "cases": [
                {"case_id": name, "source_case_id": name, "image": each.image, "label": each.label}
                | ({"label_note": each.note} if each.note else {})
                for name, each in written.items()
            ],
        },
    )
