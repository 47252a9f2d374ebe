"""Scans of a folder for prediction: the cases of a dataset, or volume files without a layout."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from gtvray.datasets.layouts.cases import ENDINGS, Case
from gtvray.datasets.layouts.find import find_dataset, has_dataset
from gtvray.datasets.layouts.structseg import LABEL
from gtvray.io import has_mark

# Datasets refuse `.nhdr` because a digest would not cover its voxel file; a prediction needs no digest.
_SCAN_ENDINGS = (*ENDINGS, ".nhdr")
_SEGMENTATION_ENDING = ".seg.nrrd"


@dataclass(frozen=True)
class FoundScans:
    """The scans of a folder.

    Attributes:
        scans: (name, file) in natural order; the name is a case id, or a file name without its ending.
        skipped: other entries of the folder -> the reason why they are not predicted.
        closed: folders of these scans and their masks, in which a predicted mask would be mistaken for one of them.
    """

    scans: tuple[tuple[str, Path], ...]
    skipped: dict[str, str]
    closed: tuple[Path, ...]


def find_scans(folder: Path) -> FoundScans:
    """Find the scans of a dataset of any layout, or else the volume files directly in a folder.

    Raises:
        NotFoundError: no such folder.
        DataError: neither cases nor volume files, or an invalid dataset.
    """
    loose, skipped = _find_loose(folder) if folder.is_dir() else ([], {})
    if not loose or has_dataset(folder):
        cases = find_dataset(folder, with_test=True).cases
        beside = {path.name: "not part of the dataset in this folder" for _, path in loose}
        return FoundScans(tuple((case.case_id, case.image) for case in cases), beside, _folders_of(cases))
    return FoundScans(tuple(loose), skipped, (folder,))


def volume_stem(name: str) -> str:
    """Return a volume's file name without its ending, which may be in any letter case."""
    lower = name.lower()
    ending = next((each for each in (*_SCAN_ENDINGS, ".gz") if lower.endswith(each) and lower != each), "")
    return name[: len(name) - len(ending)]


def _find_loose(folder: Path) -> tuple[list[tuple[str, Path]], dict[str, str]]:
    found: list[tuple[str, Path]] = []
    skipped: dict[str, str] = {}
    for entry in sorted(folder.iterdir()):
        # Hidden files are left by file managers and killed writers, such as "._scan.nii.gz" by macOS.
        if entry.name.startswith("."):
            continue
        reason = _skip_reason(entry)
        if reason is None:
            found.append((volume_stem(entry.name), entry))
        else:
            skipped[entry.name] = reason
    return found, skipped


def _skip_reason(entry: Path) -> str | None:
    name = entry.name.lower()
    if entry.is_dir():
        return "a folder"
    if not name.endswith(_SCAN_ENDINGS):
        return "not a .nii, .nii.gz, .nrrd or .nhdr file"
    if name.endswith(_SEGMENTATION_ENDING) or volume_stem(name) == LABEL:
        return "a mask, by its name"
    if not entry.is_file():
        return "not a file, or a broken link"
    return "an output of gtvray" if has_mark(entry) else None


def _folders_of(cases: tuple[Case, ...]) -> tuple[Path, ...]:
    files = [path for case in cases for path in (case.image, case.label) if path is not None]
    return tuple(dict.fromkeys(path.parent for path in files))
