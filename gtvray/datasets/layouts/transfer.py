"""A dataset written again in another layout: every voxel and affine as it was.

A file that is already as the layout wants it is copied byte for byte, never linked: who edits the copy must not change
the original. Others are written anew. Every scan and mask is read on the way, so nothing damaged is passed on.
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

from gtvray.datasets.layouts import nnunet
from gtvray.datasets.layouts.cases import Case, Dataset, LayoutName, as_binary, read_mask
from gtvray.datasets.layouts.find import LAYOUTS, find_dataset, named_values, require_one_structure
from gtvray.datasets.layouts.manifest import MANIFEST
from gtvray.datasets.layouts.patients import copy_patients
from gtvray.datasets.layouts.structseg import RECORD
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

# A full-size scan with its mask is about 100 MB; two at a time keep both cores busy.
_WORKERS = 2
_RECORD_VERSION = 1
_SHOWN = 8


@dataclass(frozen=True)
class Transferred:
    """What was written.

    Attributes:
        folder: where.
        layout: how.
        structure: what the masks hold.
        cases: how many.
        test_cases: how many of them have no mask.
        copied: files copied byte for byte.
        rewritten: files written anew.
        rounded: case id -> how the values of its mask differed from whole numbers, where they did.
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
class _Choice:
    """The structure to keep: its name, and the values that stand for it; None where masks hold 0 and 1 already."""

    name: str
    values: tuple[int, ...] | None


@dataclass(frozen=True)
class _Written:
    """How a case's files were written, for the record.

    Attributes:
        image, label: copied or rewritten.
        present: the labels of its mask, if the chosen structure is not among them.
        note: how the values of its mask differed from whole numbers.
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
    """Write a dataset of any layout in another, or one structure of several as a dataset of its own.

    Case ids stay; what became of each file stands in `transfer.json`.

    Args:
        source: the dataset.
        target: a new or empty folder.
        layout: how to write it.
        label: name or value of the structure to keep; needed where masks hold several.
        report: called with (done, all) after each case.

    Raises:
        InputError: the target is not empty or lies in the source, or nnU-Net would not find it by its name.
        DataError: several structures and none chosen, no such structure, a mask whose values are not labels, or a case
            with a mask that has no voxel of the structure.
        GeometryError: a mask is not on its scan's grid.
        VolumeError: a damaged file.
        ResourceError: the disk is full.
    """
    if layout == "nnunet":
        nnunet.require_name(target)
    with new_dataset(target, source) as partial:
        dataset = find_dataset(source, with_test=True)
        choice = _choose(dataset, label)
        labelled = {case.case_id: case.label is not None for case in dataset.cases}
        places = LAYOUTS[layout].places(labelled)
        # Case ids that differ only by case: on some file systems the second would replace the first.
        require_distinct(partial / path for pair in places.values() for path in pair if path is not None)

        def write(case: Case) -> _Written:
            return _write(case, places[case.case_id], partial, choice)

        written = {}
        with _workers() as pool:
            for case, outcome in zip(dataset.cases, pool.map(write, dataset.cases), strict=True):
                written[case.case_id] = outcome
                if report is not None:
                    report(len(written), len(dataset.cases))
        _require_voxels(source, choice, written)
        write_index(partial, layout, labelled, choice.name, dataset.about)
        copy_patients(dataset, partial)
        _record(partial, dataset, layout, choice.name, written)
    files = [how for each in written.values() for how in (each.image, each.label) if how is not None]
    return Transferred(
        folder=target,
        layout=layout,
        structure=choice.name,
        cases=len(written),
        test_cases=sum(not has_mask for has_mask in labelled.values()),
        copied=files.count("copied"),
        rewritten=files.count("rewritten"),
        rounded={name: each.note for name, each in written.items() if each.note},
    )


@contextmanager
def new_dataset(target: Path, source: Path) -> Iterator[Path]:
    """A folder to fill beside `target`, which takes its place at the end; nothing of other's is ever replaced.

    Raises:
        InputError: `target` is not a new or empty folder, or lies in `source`.
        ResourceError: the disk is full.
    """
    if source.resolve() in (target.resolve(), *target.resolve().parents):
        raise InputError("the new dataset would lie in the old one", where=target, do="choose a folder elsewhere")
    _require_free(target)
    with atomic_dir(target) as partial:
        yield partial
        # Somebody may have put something there since.
        _require_free(target)


def write_index(
    folder: Path, layout: LayoutName, labelled: Mapping[str, bool], structure: str, about: Mapping[str, str]
) -> None:
    """Write dataset.json and the folders that its readers look for, if the layout has them."""
    index = LAYOUTS[layout].index(labelled, structure, about)
    if index is not None:
        write_json(folder / MANIFEST, index)
        for name in ("imagesTr", "labelsTr", "imagesTs"):
            (folder / name).mkdir(exist_ok=True)


def _require_free(target: Path) -> None:
    require_printable_path(target)
    if os.path.lexists(target) and not (
        target.is_dir() and all(is_system_file(entry.name) for entry in target.iterdir())
    ):
        raise InputError("there is something in this place", where=target, do="choose a new or empty folder")


@contextmanager
def _workers() -> Iterator[ThreadPoolExecutor]:
    pool = ThreadPoolExecutor(_WORKERS)
    try:
        yield pool
    finally:
        # After an error or Ctrl-C the cases that have not begun are not waited for.
        pool.shutdown(cancel_futures=True)


def _choose(dataset: Dataset, label: str | None) -> _Choice:
    labels = dataset.labels
    if label is None:
        require_one_structure(dataset)
        return _Choice(dataset.structure, None)
    if label in labels:
        return _Choice(label, labels[label])
    if label.isdecimal() and int(label) > 0:
        value = int(label)
        if not labels:
            return _Choice(f"label_{value}", (value,))
        name = next((name for name, values in labels.items() if values == (value,)), None)
        if name is not None:
            return _Choice(name, (value,))
    raise DataError(
        "no such structure",
        where=dataset.root,
        expected=named_values(dataset) or "a value from 1, as this layout knows no names",
        found=label,
    )


def _write(case: Case, places: tuple[str, str | None], folder: Path, choice: _Choice) -> _Written:
    image = read_volume(case.image)
    image_place, label_place = places
    how = _put(case.image, image, folder / image_place)
    if label_place is None or case.label is None:
        return _Written(how, None)
    stored = read_mask(case, image)
    if choice.values is None:
        mask = as_binary(stored.volume, case.label)
    else:
        mask = stored.volume.with_array(np.isin(stored.volume.array, choice.values))
    # Other readers would take scaled or rounded values for what they are not, so such a file is never copied.
    if choice.values is None and stored.exact:
        label_how = _put(case.label, None, folder / label_place)
    else:
        write_volume(folder / label_place, mask)
        label_how = "rewritten"
    present = None if mask.array.any() else format_distinct(stored.volume.array, _SHOWN)
    return _Written(how, label_how, present, stored.note)


def _require_voxels(source: Path, choice: _Choice, written: Mapping[str, _Written]) -> None:
    """Refuse a dataset in which a case with a mask has no voxel of the structure."""
    masks = sum(each.label is not None for each in written.values())
    empty = {name: each.present for name, each in written.items() if each.present is not None}
    if not empty:
        return
    named = ", ".join(f"{name} (values {present})" for name, present in list(empty.items())[:_SHOWN])
    value = "" if choice.values is None else f" (value {'+'.join(map(str, choice.values))})"
    raise DataError(
        f"no voxel of {choice.name}{value} in {len(empty)} of {masks} masks",
        where=source,
        found=f"case {named}{', ...' if len(empty) > _SHOWN else ''}",
        do="choose another structure, or move these cases away: nothing was written",
    )


def _put(source: Path, volume: Volume | None, target: Path) -> str:
    """Copy a volume's file where that is compressed NIfTI-1, else write it anew, read again unless it is given."""
    if source.name.lower().endswith(".nii.gz") and _is_packed_nifti1(source):
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
        return "copied"
    write_volume(target, read_volume(source) if volume is None else volume)
    return "rewritten"


def _is_packed_nifti1(path: Path) -> bool:
    # nnU-Net's reader knows a file by its name and its first bytes, and does not know NIfTI-2.
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
