"""nnU-Net's raw layout, version 2: `imagesTr/CASE_0000.nii.gz`, `labelsTr/CASE.nii.gz`, `imagesTs`, `dataset.json`.

Format: https://github.com/MIC-DKFZ/nnUNet/blob/master/documentation/dataset_format.md
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from gtvray.datasets.layouts.cases import Case, Dataset, require_file
from gtvray.datasets.layouts.manifest import build_dataset, parse_values, read_manifest, require_count, require_ct
from gtvray.errors import DataError, InputError
from gtvray.io import find_entry, find_listed, match_name

EXAMPLE_NAME = "Dataset101_GTV"
FILES = "nnU-Net's dataset.json with imagesTr/CASE_0000.nii.gz and labelsTr/CASE.nii.gz"
TEST_FOLDER = "imagesTs"
FOLDERS: tuple[str, ...] = ("imagesTr", "labelsTr", "imagesTs")
WRAPPERS: tuple[str, ...] = ()
_NAME = re.compile(r"Dataset\d{3}_\w+")


def recognise(folder: Path) -> bool:
    """Return whether a folder has nnU-Net's dataset.json."""
    return "channel_names" in read_manifest(folder)


def find(folder: Path, *, with_test: bool) -> Dataset:
    """Find the cases of a dataset.

    Args:
        folder: holds dataset.json.
        with_test: include the cases of imagesTs. Their masks are never read, so that they remain test cases.

    Raises:
        DataError: not a CT of one channel, a missing file, or another number of cases than numTraining.
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
    return build_dataset(folder, manifest, "nnunet", cases, labels)


def file_paths(labelled: Mapping[str, bool]) -> dict[str, tuple[str, str | None]]:
    """Return the paths of scan and mask by case, as `structseg.file_paths`."""
    return {
        name: (f"imagesTr/{name}_0000.nii.gz", f"labelsTr/{name}.nii.gz")
        if has_mask
        else (f"imagesTs/{name}_0000.nii.gz", None)
        for name, has_mask in labelled.items()
    }


def make_manifest(labelled: Mapping[str, bool], structure: str, about: Mapping[str, str]) -> dict[str, Any]:
    """Return the content of dataset.json."""
    return {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, structure: 1},
        "numTraining": sum(labelled.values()),
        "file_ending": ".nii.gz",
        **about,
    }


def require_name(folder: Path) -> None:
    """Refuse a folder name that nnU-Net does not accept.

    Raises:
        InputError: the name is not DatasetNNN_Name.
    """
    if not _NAME.fullmatch(folder.resolve().name):
        raise InputError(
            "nnU-Net does not accept this folder name",
            where=folder,
            expected="DatasetNNN_Name, with three digits",
            do=f"name it like {EXAMPLE_NAME}",
        )


def _labels(folder: Path, manifest: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    labels = manifest.get("labels")
    where = folder / "dataset.json"
    if not isinstance(labels, dict) or not labels:
        raise DataError("dataset.json lists no labels", where=where, expected='"labels": {"background": 0, "GTV": 1}')
    if "ignore" in labels:
        raise DataError(
            "the masks have an ignore label",
            where=where,
            expected="background and structures only",
            found=f'"ignore": {labels["ignore"]}',
            do="assign these voxels to background or structure; gtvray cannot exclude voxels from the loss",
        )
    return {str(name): parse_values(value, where) for name, value in labels.items()}


def _listed(folder: Path, listed: Mapping[str, Any]) -> Iterable[Case]:
    """Yield the cases of a dataset.json that lists each file; environment variables are expanded as in nnU-Net."""
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
        parts = re.fullmatch(r"(.+)_(\d{4})", _stem(path, ending), re.DOTALL)
        if parts is None or parts[2] != "0000":
            raise DataError(
                "not the file name of a scan of one channel",
                where=path,
                expected=f"CASE_0000{ending}",
                do="rename it, or move it away",
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
