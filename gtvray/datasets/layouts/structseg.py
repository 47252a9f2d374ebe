"""StructSeg's layout: a folder a case, with `data` and `label` in it.

Cases without a mask lie in `test/` when others have one: this is gtvray's addition, for what other layouts keep in
`imagesTs/`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from gtvray.datasets.layouts.cases import ENDINGS, Case, Dataset, find_volume, in_order, split_ending
from gtvray.errors import DataError
from gtvray.io import is_system_file, read_json

IMAGE, LABEL, TEST = "data", "label", "test"
# The folders StructSeg's archives and mirrors put around the cases. One bears the name of Task 1 and may hold either.
WRAPPERS = ("HaN_GTV/Naso_GTV", "Naso_GTV", "HaN_OAR", "HaN_GTV")
ORGANS = "HaN_OAR"
STRUCTURE = "GTV"
# Written by `gtvray data import`; carries what this layout has no place for.
RECORD = "transfer.json"


def recognise(folder: Path) -> bool:
    """Whether a folder holds case folders."""
    return any(_looks_like_case(entry) for entry in _folders(folder)) or any(
        _looks_like_case(entry) for entry in _folders(folder / TEST)
    )


def find(folder: Path, *, with_test: bool) -> Dataset:
    """The cases of a folder.

    Args:
        folder: holds the case folders.
        with_test: cases without a mask as well.

    Raises:
        DataError: a case without a scan, or, unless `with_test`, without a mask.
    """
    cases = [_case(entry, labels_required=not with_test) for entry in _folders(folder) if _means_case(entry)]
    if with_test:
        cases += [_case(entry, labels_required=False) for entry in _folders(folder / TEST) if _means_case(entry)]
    record = read_record(folder)
    name = folder.resolve().name
    return Dataset(
        root=folder,
        structure=str(record.get("structure", STRUCTURE)),
        cases=in_order(cases, folder),
        layout="structseg",
        about={key: str(value) for key, value in record.get("about", {}).items()},
        remark=f"folder {ORGANS}: if these are Task 1's organs, choose one by its value" if name == ORGANS else "",
    )


def read_record(folder: Path) -> dict[str, Any]:
    """What `gtvray data import` or `export` noted about a folder; empty if it did not make it."""
    record = read_json(folder / RECORD) if (folder / RECORD).is_file() else None
    return record if isinstance(record, dict) else {}


def places(labelled: Mapping[str, bool]) -> dict[str, tuple[str, str | None]]:
    """Where the files of each case go.

    Args:
        labelled: case id -> whether it has a mask.

    Returns:
        case id -> path of the scan and, with a mask, of the mask, relative to the dataset's folder.
    """
    both = any(labelled.values())
    return {
        name: (f"{name}/{IMAGE}.nii.gz", f"{name}/{LABEL}.nii.gz")
        if has_mask
        else (f"{TEST}/{name}/{IMAGE}.nii.gz" if both else f"{name}/{IMAGE}.nii.gz", None)
        for name, has_mask in labelled.items()
    }


def index(labelled: Mapping[str, bool], structure: str, about: Mapping[str, str]) -> None:
    """This layout has no file that lists its cases."""


def _case(folder: Path, *, labels_required: bool) -> Case:
    image, label = find_volume(folder, IMAGE), find_volume(folder, LABEL)
    if image is None:
        there = sorted(entry.name for entry in folder.iterdir() if not is_system_file(entry.name))
        raise DataError(
            "case has no scan",
            where=folder,
            expected=f"{IMAGE}.nii.gz",
            found=", ".join(there[:5]) or "an empty folder",
            do="add it or move the case away",
        )
    if label is None and labels_required:
        raise DataError("case has no mask", where=folder, expected=f"{LABEL}.nii.gz", do="add it or move the case away")
    return Case(folder.name, image, label)


def _folders(folder: Path) -> Iterable[Path]:
    if not folder.is_dir():
        return []
    return [
        entry
        for entry in folder.iterdir()
        if not entry.name.startswith(".") and not is_system_file(entry.name) and entry.is_dir()
    ]


def _looks_like_case(entry: Path) -> bool:
    if any((entry / f"{stem}{ending}").exists() for stem in (IMAGE, LABEL) for ending in ENDINGS):
        return True
    stems = ((split_ending(name) or ("",))[0] for name in os.listdir(entry))
    return any(stem.lower() in (IMAGE, LABEL) for stem in stems)


def _means_case(entry: Path) -> bool:
    # A number is a case even without its files: a copy or a download may have broken off there.
    return entry.name.isdecimal() or _looks_like_case(entry)
