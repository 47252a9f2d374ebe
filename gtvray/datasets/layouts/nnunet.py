"""nnU-Net's raw layout, version 2: `imagesTr/<case>_0000.nii.gz`, `labelsTr/<case>.nii.gz`, `imagesTs`, `dataset.json`.

Format: https://github.com/MIC-DKFZ/nnUNet/blob/master/documentation/dataset_format.md
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from gtvray.datasets.layouts.cases import Case, Dataset, require_file
from gtvray.datasets.layouts.manifest import described, read_manifest, require_count, require_ct, values_of
from gtvray.errors import DataError, InputError
from gtvray.io import find_entry, find_listed, match_name

_NAME = re.compile(r"Dataset\d{3}_\w+")


def recognise(folder: Path) -> bool:
    """Whether a folder holds such a dataset."""
    return "channel_names" in read_manifest(folder)


def find(folder: Path, *, with_test: bool) -> Dataset:
    """The cases of a dataset.

    Args:
        folder: holds dataset.json.
        with_test: those of imagesTs as well. Their masks are never read, so that they stay test cases.

    Raises:
        DataError: not a CT of one channel, a file is missing, or the count is not the one that dataset.json gives.
    """
    manifest = read_manifest(folder)
    require_ct(folder, "channel_names", manifest["channel_names"])
    labels = _labels(folder, manifest)
    ending = str(manifest.get("file_ending", ".nii.gz"))
    listed = manifest.get("dataset")
    cases = list(_listed(folder, listed) if isinstance(listed, dict) else _found(folder, ending))
    require_count(folder, manifest, len(cases))
    if with_test:
        cases += [Case(name, image, None) for name, image in _scans(find_entry(folder, "imagesTs"), ending)]
    return described(folder, manifest, "nnunet", cases, labels)


def places(labelled: Mapping[str, bool]) -> dict[str, tuple[str, str | None]]:
    """Where the files of each case go, as `structseg.places`."""
    return {
        name: (f"imagesTr/{name}_0000.nii.gz", f"labelsTr/{name}.nii.gz")
        if has_mask
        else (f"imagesTs/{name}_0000.nii.gz", None)
        for name, has_mask in labelled.items()
    }


def index(labelled: Mapping[str, bool], structure: str, about: Mapping[str, str]) -> dict[str, Any]:
    """The content of dataset.json."""
    return {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, structure: 1},
        "numTraining": sum(labelled.values()),
        "file_ending": ".nii.gz",
        **about,
    }


def require_name(folder: Path) -> None:
    """Refuse a name that nnU-Net would not find.

    Raises:
        InputError: it is not DatasetNNN_Name.
    """
    if not _NAME.fullmatch(folder.resolve().name):
        raise InputError(
            "nnU-Net finds a dataset by its folder's name",
            where=folder,
            expected="DatasetNNN_Name, with three digits",
            do="name it like Dataset101_GTV",
        )


def _labels(folder: Path, manifest: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    labels = manifest.get("labels")
    where = folder / "dataset.json"
    if not isinstance(labels, dict) or not labels:
        raise DataError("dataset.json names no labels", where=where, expected='"labels": {"background": 0, "GTV": 1}')
    if "ignore" in labels:
        raise DataError(
            "the masks have voxels to be ignored",
            where=where,
            expected="voxels that are background or structure",
            found=f'"ignore": {labels["ignore"]}',
            do="decide what these voxels are; gtvray cannot leave them out of a loss",
        )
    return {str(name): values_of(value, where) for name, value in labels.items()}


def _listed(folder: Path, listed: Mapping[str, Any]) -> Iterable[Case]:
    """Cases of a dataset.json that names each file, with variables of the environment as nnU-Net allows them."""
    for name, entry in listed.items():
        try:
            (image,), label = entry["images"], entry["label"]
            paths = [find_listed(folder, os.path.expandvars(path)) for path in (image, label)]
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(
                "an entry under dataset is not one scan and its mask",
                where=folder / "dataset.json",
                expected='{"images": [SCAN], "label": MASK}',
                found=f"{name}: {entry}",
            ) from error
        yield Case(str(name), *map(require_file, paths))


def _found(folder: Path, ending: str) -> Iterable[Case]:
    scans = _scans(find_entry(folder, "imagesTr"), ending)
    masks = {_stem(path, ending): path for path in _files(find_entry(folder, "labelsTr"), ending)}
    for name, image in scans:
        mask = match_name(name, masks)
        if mask is None:
            raise DataError(
                "case has no mask", where=image, expected=f"labelsTr/{name}{ending}", do="add it or move the case away"
            )
        yield Case(name, image, require_file(masks.pop(mask)))
    for name, path in masks.items():
        raise DataError("case has no scan", where=path, expected=f"imagesTr/{name}_0000{ending}", do="add the scan")


def _scans(folder: Path, ending: str) -> list[tuple[str, Path]]:
    scans = []
    for path in _files(folder, ending):
        parts = re.fullmatch(r"(.+)_(\d{4})", _stem(path, ending))
        if parts is None or parts[2] != "0000":
            raise DataError(
                "not the name of a scan of one channel",
                where=path,
                expected=f"<case>_0000{ending}",
                do="name it so, or move it away",
            )
        scans.append((parts[1], require_file(path)))
    return scans


def _stem(path: Path, ending: str) -> str:
    return path.name[: len(path.name) - len(ending)]


def _files(folder: Path, ending: str) -> list[Path]:
    if not folder.is_dir():
        return []
    return [
        path
        for path in sorted(folder.iterdir())
        if path.name.lower().endswith(ending.lower()) and not path.name.startswith(".")
    ]
