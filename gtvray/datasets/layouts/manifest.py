"""`dataset.json`, as nnU-Net and the Medical Segmentation Decathlon have it: reading what both share."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from gtvray.datasets.layouts.cases import Case, Dataset, LayoutName, in_order
from gtvray.errors import DataError
from gtvray.io import find_entry, read_json

MANIFEST = "dataset.json"
_ABOUT = ("name", "description", "reference", "licence", "license", "release")


def read_manifest(folder: Path) -> dict[str, Any]:
    """What a folder's dataset.json holds; empty if there is none.

    Raises:
        DataError: it is no JSON object.
        InputError: it is not JSON.
    """
    path = find_entry(folder, MANIFEST)
    if not path.is_file():
        return {}
    manifest = read_json(path)
    if not isinstance(manifest, dict):
        raise DataError("not a JSON object", where=path, found=type(manifest).__name__)
    return manifest


def described(
    folder: Path,
    manifest: Mapping[str, Any],
    layout: LayoutName,
    cases: Iterable[Case],
    values: Mapping[str, tuple[int, ...]],
) -> Dataset:
    """The dataset of a manifest.

    Args:
        folder: holds dataset.json.
        manifest: its content.
        layout: by which it was found.
        cases: found by the layout.
        values: every label's values by its name; the background is left out.
    """
    labels = {name: numbers for name, numbers in values.items() if numbers != (0,)}
    return Dataset(
        root=folder,
        structure=", ".join(labels),
        cases=in_order(cases, folder),
        layout=layout,
        labels=labels,
        about=_about(manifest),
    )


def require_ct(folder: Path, key: str, channels: Any) -> None:
    """Refuse what is not one channel of CT.

    Raises:
        DataError: several channels, or one of another name.
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
    """Refuse a dataset with another number of training cases than it says.

    Raises:
        DataError: the numbers differ.
    """
    told = manifest.get("numTraining", found)
    if told != found:
        raise DataError(
            "dataset.json counts other training cases than there are",
            where=folder / MANIFEST,
            expected=f"{told} by numTraining",
            found=found,
            do="complete the download, or correct numTraining",
        )


def values_of(value: Any, where: object) -> tuple[int, ...]:
    """A label's value, or the values a region is made of.

    Raises:
        DataError: they are no whole numbers from 0.
    """
    listed = value if isinstance(value, list) else [value]
    # Text is what the Decathlon's keys are; int() alone would cut 1.5 off to 1.
    texts = ["" if isinstance(each, bool) else str(each).strip() for each in listed]
    if not texts or not all(text.isascii() and text.isdecimal() for text in texts):
        raise DataError("a label's value is no whole number", where=where, expected="0, 1, 2, ...", found=repr(value))
    return tuple(int(text) for text in texts)


def _about(manifest: Mapping[str, Any]) -> dict[str, str]:
    """What a dataset says of itself."""
    return {key: str(manifest[key]) for key in _ABOUT if isinstance(manifest.get(key), str) and manifest[key]}
