"""Dataset layouts: StructSeg's folders of numbered cases, each with a scan and a mask."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gtvray.errors import DataError, GeometryError, NotFoundError
from gtvray.geometry import Volume
from gtvray.io import read_volume

IMAGE_NAMES = ("data.nii.gz", "data.nii")
LABEL_NAMES = ("label.nii.gz", "label.nii")
# The folders StructSeg's archives and mirrors put around the cases.
WRAPPERS = ("HaN_GTV/Naso_GTV", "Naso_GTV", "HaN_OAR", "HaN_GTV")


@dataclass(frozen=True)
class Case:
    """One patient's scan and, where it has been drawn, the mask."""

    case_id: str
    image: Path
    label: Path | None


@dataclass(frozen=True)
class Dataset:
    """The cases under a folder, in natural order."""

    root: Path
    structure: str
    cases: tuple[Case, ...]

    def subset(self, case_ids: tuple[str, ...]) -> tuple[Case, ...]:
        """The cases of these ids, in the order of the ids."""
        by_id = {case.case_id: case for case in self.cases}
        return tuple(by_id[case_id] for case_id in case_ids)


def index_dataset(folder: str | Path, *, labels_required: bool = True) -> Dataset:
    """Find the cases of a StructSeg-layout folder, whichever of its wrappers is named.

    Raises:
        NotFoundError: no such folder.
        DataError: no case in it, or a case without a scan or without a mask.
    """
    root = Path(folder)
    if not root.is_dir():
        raise NotFoundError("no such folder", where=root, expected="<case>/data.nii.gz and <case>/label.nii.gz")
    home = next((root / name for name in WRAPPERS if (root / name).is_dir()), root)
    cases = [_case(entry, labels_required) for entry in sorted(home.iterdir(), key=_natural) if _looks_like_case(entry)]
    if not cases:
        raise DataError(
            "no case in this folder",
            where=home,
            expected="<case>/data.nii.gz and <case>/label.nii.gz",
            found=", ".join(sorted(entry.name for entry in home.iterdir())[:5]) or "nothing",
            do="name the folder that holds the case folders",
        )
    return Dataset(root=home, structure="GTV", cases=tuple(cases))


def read_label(case: Case, image: Volume) -> Volume:
    """Read a case's mask and hold it against its scan.

    Returns:
        a uint8 mask of 0 and 1 on the scan's grid.

    Raises:
        GeometryError: it lies on another grid.
        DataError: it is empty, or holds other values than 0 and 1.
        VolumeError: the file is damaged.
    """
    if case.label is None:
        raise DataError("case has no mask", where=case.image.parent, expected="label.nii.gz")
    label = read_volume(case.label)
    if not label.same_grid(image):
        raise GeometryError(
            "mask is not on the scan's grid",
            where=case.label,
            expected=_describe_grid(image),
            found=_describe_grid(label),
            do="export both from the same series",
        )
    values = np.unique(label.array)
    if not np.isin(values, (0, 1)).all():
        raise DataError(
            "mask is not binary",
            where=case.label,
            expected="0 and 1",
            found=f"{values[:8].tolist()}",
            do="keep one structure (a multi-organ file is StructSeg Task 1)",
        )
    if not label.array.any():
        raise DataError("mask is empty", where=case.label, expected="at least one tumour voxel", found="all zero")
    return label.with_array(label.array.astype(np.uint8))


def _case(folder: Path, labels_required: bool) -> Case:
    image = next((folder / name for name in IMAGE_NAMES if (folder / name).is_file()), None)
    label = next((folder / name for name in LABEL_NAMES if (folder / name).is_file()), None)
    if image is None:
        raise DataError("case has no scan", where=folder, expected="data.nii.gz", do="add it or move the case away")
    if label is None and labels_required:
        raise DataError("case has no mask", where=folder, expected="label.nii.gz", do="add it or move the case away")
    return Case(folder.name, image, label)


def _looks_like_case(entry: Path) -> bool:
    if not entry.is_dir() or entry.name.startswith("."):
        return False
    return any((entry / name).exists() for name in (*IMAGE_NAMES, *LABEL_NAMES))


def _natural(path: Path) -> list[tuple[int, int, str]]:
    parts = re.findall(r"\d+|\D+", path.name)
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts]


def _describe_grid(volume: Volume) -> str:
    spacing = "x".join(f"{value:.3g}" for value in volume.spacing_mm)
    origin = ", ".join(f"{value:.1f}" for value in volume.affine[:3, 3])
    return f"{volume.shape} at {spacing} mm {volume.orientation} from ({origin})"
