"""Files that describe a dataset: `dataset.json` of nnU-Net and the Decathlon, and gtvray's `transfer.json`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from gtvray.datasets.layouts import LayoutName
from gtvray.datasets.layouts.cases import Case, Dataset, order_cases
from gtvray.errors import DataError
from gtvray.io import find_entry, read_json

MANIFEST = "dataset.json"
# Written by `gtvray data import` and `export`; holds the metadata of datasets whose layout has no manifest.
RECORD = "transfer.json"
_ABOUT = ("name", "description", "reference", "licence", "license", "release")


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read a folder's dataset.json; empty if there is none.

    Raises:
        DataError: the file is not a JSON object.
        InputError: the file is not JSON.
    """
    path = find_entry(folder, MANIFEST)
    if not path.is_file():
        return {}
    manifest = read_json(path)
    if not isinstance(manifest, dict):
        raise DataError("not a JSON object", where=path, found=type(manifest).__name__)
    return manifest


def read_record(folder: Path) -> dict[str, Any]:
    """Read the record of `gtvray data import` or `export`; empty if neither wrote the folder."""
    record = read_json(folder / RECORD) if (folder / RECORD).is_file() else None
    return record if isinstance(record, dict) else {}


def build_dataset(
    folder: Path,
    manifest: Mapping[str, Any],
    layout: LayoutName,
    cases: Iterable[Case],
    values: Mapping[str, tuple[int, ...]],
) -> Dataset:
    """Make the `Dataset` of a dataset.json.

    Args:
        folder: holds dataset.json.
        manifest: its content.
        layout: layout of the folder.
        cases: cases found by the layout.
        values: values of each label by its name; the background is omitted from the dataset.
    """
    labels = {name: numbers for name, numbers in values.items() if numbers != (0,)}
    return Dataset(
        root=folder,
        structure=", ".join(labels),
        cases=order_cases(cases, folder),
        layout=layout,
        labels=labels,
        about=_about(manifest),
    )


def require_ct(folder: Path, key: str, channels: Any) -> None:
    """Refuse a dataset that is not one channel of CT.

    Raises:
        DataError: several channels, or a channel with another name.
    """
    names = list(channels.values()) if isinstance(channels, dict) else channels
    names = [str(name) for name in names] if isinstance(names, list) else [str(names)]
    if len(names) == 1 and "ct" in re.split(r"[^a-z]+", names[0].lower()):
        return
    raise DataError(
        "not a CT of one channel" if len(names) == 1 else "scans of several channels",
        where=folder / MANIFEST,
        expected=f'"{key}": {{"0": "CT"}}',
        found=", ".join(names) or "no channel",
        do="if it is a CT in Hounsfield units, name the channel CT" if len(names) == 1 else None,
    )


def require_count(folder: Path, manifest: Mapping[str, Any], found: int) -> None:
    """Refuse a dataset with another number of training cases than numTraining.

    Raises:
        DataError: the numbers differ.
    """
    stated = manifest.get("numTraining", found)
    if stated != found:
        raise DataError(
            "numTraining in dataset.json differs from the number of training cases",
            where=folder / MANIFEST,
            expected=f"{stated} by numTraining",
            found=found,
            do="complete the download, or correct numTraining",
        )


def parse_values(value: Any, where: object) -> tuple[int, ...]:
    """Parse the value of a label, or the values of a region.

    Raises:
        DataError: a value is not an integer of at least 0.
    """
    listed = value if isinstance(value, list) else [value]
    # The Decathlon's keys are text, and int() alone would truncate 1.5 to 1.
    texts = ["" if isinstance(each, bool) else str(each).strip() for each in listed]
    if not texts or not all(text.isascii() and text.isdecimal() for text in texts):
        raise DataError("a label's value is not an integer", where=where, expected="0, 1, 2, ...", found=repr(value))
    return tuple(int(text) for text in texts)


def _about(manifest: Mapping[str, Any]) -> dict[str, str]:
    """Return the metadata of a dataset."""
    return {key: str(manifest[key]) for key in _ABOUT if isinstance(manifest.get(key), str) and manifest[key]}
