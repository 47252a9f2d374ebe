"""The layout of the Medical Segmentation Decathlon: `dataset.json` lists every scan with its mask.

Format: http://medicaldecathlon.com; nnU-Net version 1 has the same list, with scan files that end in `_0000`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gtvray.datasets.layouts.cases import Case, Dataset, require_file, split_ending
from gtvray.datasets.layouts.manifest import build_dataset, parse_values, read_manifest, require_count, require_ct
from gtvray.errors import DataError
from gtvray.io import find_entry, find_listed, is_system_file, listed_parts

EXAMPLE_NAME = "Task01_GTV"
FILES = "the Decathlon's dataset.json with the files that it lists"
TEST_FOLDER = "imagesTs"
FOLDERS: tuple[str, ...] = ("imagesTr", "labelsTr", "imagesTs")
WRAPPERS: tuple[str, ...] = ()


def recognise(folder: Path) -> bool:
    """Return whether a folder has the Decathlon's dataset.json."""
    manifest = read_manifest(folder)
    return "modality" in manifest and "channel_names" not in manifest


def require_name(folder: Path) -> None:
    """Accept any folder name."""


def find(folder: Path, *, with_test: bool) -> Dataset:
    """Find the cases of a dataset.

    Args:
        folder: holds dataset.json.
        with_test: include the cases listed under test.

    Raises:
        DataError: not a CT of one channel, a listed file is missing, or the list is inconsistent.
    """
    manifest = read_manifest(folder)
    require_ct(folder, "modality", manifest["modality"])
    labels = _labels(folder, manifest)
    listed = _list(folder, manifest, "training")
    cases = [_case(folder, entry) for entry in listed if not _is_litter(entry)]
    # A list made on macOS may include the system's own files.
    require_count(folder, manifest, len(listed) if manifest.get("numTraining") == len(listed) else len(cases))
    if with_test:
        tests = ({"image": entry} for entry in _list(folder, manifest, "test"))
        cases += [_case(folder, entry) for entry in tests if not _is_litter(entry)]
    return build_dataset(folder, manifest, "msd", cases, labels)


def file_paths(labelled: Mapping[str, bool]) -> dict[str, tuple[str, str | None]]:
    """Return the paths of scan and mask by case, as `structseg.file_paths`."""
    return {
        name: (f"imagesTr/{name}.nii.gz", f"labelsTr/{name}.nii.gz") if has_mask else (f"imagesTs/{name}.nii.gz", None)
        for name, has_mask in labelled.items()
    }


def make_manifest(labelled: Mapping[str, bool], structure: str, about: Mapping[str, str]) -> dict[str, Any]:
    """Return the content of dataset.json."""
    paths = file_paths(labelled)
    training = [{"image": f"./{image}", "label": f"./{label}"} for image, label in paths.values() if label is not None]
    test = [f"./{image}" for image, label in paths.values() if label is None]
    return {
        **{key: about.get(key, "") for key in ("name", "description", "reference", "licence", "release")},
        **about,
        "tensorImageSize": "3D",
        "modality": {"0": "CT"},
        "labels": {"0": "background", "1": structure},
        "numTraining": len(training),
        "numTest": len(test),
        "training": training,
        "test": test,
    }


def _labels(folder: Path, manifest: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    labels, where = manifest.get("labels"), folder / "dataset.json"
    if not isinstance(labels, dict) or not labels:
        raise DataError("dataset.json lists no labels", where=where, expected='"labels": {"0": "background", "1": ...}')
    values: dict[str, tuple[int, ...]] = {}
    for value, name in labels.items():
        # Several values may have the same name.
        values[str(name)] = (*values.get(str(name), ()), *parse_values(value, where))
    return values


def _list(folder: Path, manifest: Mapping[str, Any], key: str) -> list[Any]:
    listed = manifest.get(key, [])
    if not isinstance(listed, list):
        raise DataError(f"{key} is not a list", where=folder / "dataset.json", found=type(listed).__name__)
    return listed


def _case(folder: Path, entry: Any) -> Case:
    entry = _flatten(entry)
    try:
        image, label = _scan_file(find_listed(folder, entry["image"])), entry.get("label")
        mask = None if label is None else require_file(find_listed(folder, label))
        name, _ = split_ending(listed_parts(entry["image"])[-1]) or ("", "")
    except (AttributeError, IndexError, KeyError, TypeError) as error:
        raise DataError(
            "an entry of dataset.json is not a scan and its mask",
            where=folder / "dataset.json",
            expected='{"image": "./imagesTr/x.nii.gz", "label": "./labelsTr/x.nii.gz"}',
            found=entry,
        ) from error
    return Case(name, image, mask)


def _flatten(entry: Any) -> Any:
    """Return the entry of a scan; some datasets list test scans as {"image": ...} like training scans."""
    return entry["image"] if isinstance(entry, dict) and isinstance(entry.get("image"), dict) else entry


def _is_litter(entry: Any) -> bool:
    image = entry.get("image") if isinstance(entry := _flatten(entry), dict) else None
    return isinstance(image, str) and is_system_file((listed_parts(image) or ("",))[-1])


def _scan_file(listed: Path) -> Path:
    """Return the listed scan or, as in nnU-Net version 1, the file with the channel's number."""
    parts = split_ending(listed.name)
    numbered = find_entry(listed.parent, f"{parts[0]}_0000{parts[1]}") if parts else listed
    return numbered if numbered.is_file() and not listed.is_file() else require_file(listed)
