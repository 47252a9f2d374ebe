"""StructSeg's layout: one folder per case, with the files `data` and `label`.

When some cases have a mask, those without one are in `test/`. This is gtvray's addition, for what other layouts keep in
`imagesTs/`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from gtvray.datasets.layouts.cases import ENDINGS, Case, Dataset, find_volume, order_cases, split_ending
from gtvray.datasets.layouts.manifest import read_record
from gtvray.errors import DataError
from gtvray.io import is_system_file

EXAMPLE_NAME = "Naso_GTV"
FILES = "CASE/data.nii.gz with CASE/label.nii.gz"
TEST_FOLDER = "test"
FOLDERS: tuple[str, ...] = ()
# Folders around the cases in StructSeg's archives and their mirrors. HaN_OAR is named after Task 1 and may hold either.
WRAPPERS: tuple[str, ...] = ("HaN_GTV/Naso_GTV", "Naso_GTV", "HaN_OAR", "HaN_GTV")
ORGANS = "HaN_OAR"
IMAGE, LABEL = "data", "label"
STRUCTURE = "GTV"
# Folders of other layouts, in which files may be named data or label after their cases.
_NO_CASES = frozenset({"imagesTr", "labelsTr", "imagesTs", "labelsTs"})


def recognise(folder: Path) -> bool:
    """Return whether a folder holds case folders."""
    return any(_has_case_files(entry) for parent in (folder, folder / TEST_FOLDER) for entry in _folders(parent))


def require_name(folder: Path) -> None:
    """Accept any folder name."""


def find(folder: Path, *, with_test: bool) -> Dataset:
    """Find the cases of a folder.

    Args:
        folder: holds the case folders.
        with_test: include cases without a mask.

    Raises:
        DataError: a case without a scan, or, unless `with_test`, without a mask.
    """
    cases = [_read_case(entry, labels_required=not with_test) for entry in _folders(folder) if _is_case(entry)]
    if with_test:
        tests = (entry for entry in _folders(folder / TEST_FOLDER) if _is_case(entry))
        cases += [_read_case(entry, labels_required=False) for entry in tests]
    record = read_record(folder)
    name = folder.resolve().name
    return Dataset(
        root=folder,
        structure=str(record.get("structure", STRUCTURE)),
        cases=order_cases(cases, folder),
        layout="structseg",
        about={key: str(value) for key, value in record.get("about", {}).items()},
        remark=f"folder {ORGANS}: if these are the organs of Task 1, choose one by its value" if name == ORGANS else "",
    )


def file_paths(labelled: Mapping[str, bool]) -> dict[str, tuple[str, str | None]]:
    """Return the paths of scan and mask by case, relative to the dataset's folder.

    Args:
        labelled: case id -> whether the case has a mask.
    """
    both = any(labelled.values())
    return {
        name: (f"{name}/{IMAGE}.nii.gz", f"{name}/{LABEL}.nii.gz")
        if has_mask
        else (f"{TEST_FOLDER}/{name}/{IMAGE}.nii.gz" if both else f"{name}/{IMAGE}.nii.gz", None)
        for name, has_mask in labelled.items()
    }


def make_manifest(labelled: Mapping[str, bool], structure: str, about: Mapping[str, str]) -> None:
    """Return None: this layout has no dataset.json."""


def _read_case(folder: Path, *, labels_required: bool) -> Case:
    image, label = find_volume(folder, IMAGE), find_volume(folder, LABEL)
    if image is None:
        entries = sorted(entry.name for entry in folder.iterdir() if not is_system_file(entry.name))
        raise DataError(
            "case has no scan",
            where=folder,
            expected=f"{IMAGE}.nii.gz",
            found=", ".join(entries[:5]) or "an empty folder",
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
        if not entry.name.startswith(".")
        and not is_system_file(entry.name)
        and entry.name not in _NO_CASES
        and entry.is_dir()
    ]


def _has_case_files(entry: Path) -> bool:
    if any((entry / f"{stem}{ending}").exists() for stem in (IMAGE, LABEL) for ending in ENDINGS):
        return True
    stems = ((split_ending(name) or ("",))[0] for name in os.listdir(entry))
    return any(stem.lower() in (IMAGE, LABEL) for stem in stems)


def _is_case(entry: Path) -> bool:
    # A number is a case even without its files: a copy or a download may have stopped there.
    return entry.name.isdecimal() or _has_case_files(entry)
