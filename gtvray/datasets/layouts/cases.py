"""Cases: a scan and its mask, whatever layout their files lie in."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np

from gtvray.errors import DataError, GeometryError
from gtvray.geometry import Volume, furthest_corner_mm
from gtvray.io import Labels, canonical_name, format_distinct, is_printable_name, read_labels

LayoutName = Literal["structseg", "nnunet", "msd"]
# Endings a scan or a mask may have. What a file really holds is found out when it is read. Not .nhdr: its voxels are in
# another file, which the digest of this one would not cover.
ENDINGS = (".nii.gz", ".nii", ".seg.nrrd", ".nrrd")
_SHOWN = 12
# Files that are named by a case have up to 50 bytes more, and a file system takes 255.
_MOST_ID_BYTES = 200


@dataclass(frozen=True)
class Case:
    """One patient's scan and, where it has been drawn, the mask."""

    case_id: str
    image: Path
    label: Path | None


@dataclass(frozen=True)
class Dataset:
    """The cases under a folder, in natural order.

    Attributes:
        root: the folder that holds the cases.
        structure: name of what is drawn; several, with commas, in a dataset of several.
        cases: those with a mask, and those without where they were asked for.
        layout: how the files lie.
        labels: structure -> its values in the masks, without the background; empty if the layout does not tell.
        about: what the dataset says of itself: name, licence, reference and the like.
        remark: what a reader should know of the structure.
    """

    root: Path
    structure: str
    cases: tuple[Case, ...]
    layout: LayoutName
    labels: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    about: Mapping[str, str] = field(default_factory=dict)
    remark: str = ""

    @property
    def title(self) -> str:
        """How many cases of what, for people."""
        return f"{len(self.cases)} cases of {self.structure}" + (f" ({self.remark})" if self.remark else "")

    def subset(self, case_ids: tuple[str, ...]) -> tuple[Case, ...]:
        """The cases of these ids, in the order of the ids."""
        by_id = {case.case_id: case for case in self.cases}
        return tuple(by_id[case_id] for case_id in case_ids)


def read_mask(case: Case, image: Volume) -> Labels:
    """Read a case's mask and compare its grid with its scan's.

    Returns:
        the mask with its own labels: one structure, several or none.

    Raises:
        DataError: the case has no mask, or its values are not labels.
        GeometryError: it lies on another grid.
        VolumeError: the file is damaged.
    """
    if case.label is None:
        raise DataError("case has no mask", where=case.image.parent, expected="a mask beside the scan")
    labels: Labels = read_labels(case.label)
    require_grid(labels.volume, image, case.label, do="export both from the same series")
    return labels


def read_label(case: Case, image: Volume) -> Volume:
    """Read a case's mask as training and scoring need it.

    Returns:
        a uint8 mask of 0 and 1 on the scan's grid.

    Raises:
        DataError: it is empty, or holds other values than 0 and 1.
        GeometryError, VolumeError: as `read_mask`.
    """
    return read_noted_label(case, image)[0]


def read_noted_label(case: Case, image: Volume) -> tuple[Volume, str]:
    """Read a mask as `read_label`, and return how its stored values differed from whole numbers as well.

    Raises:
        as `read_label`.
    """
    labels = read_mask(case, image)
    require_marked(labels, case.label)
    return as_binary(labels.volume, case.label), labels.note


def read_binary(path: Path) -> Volume:
    """Read a mask of one structure that may be empty, such as a prediction.

    Returns:
        a uint8 mask of 0 and 1.

    Raises:
        DataError: it holds other values than 0 and 1.
        NotFoundError, VolumeError, GeometryError: as `gtvray.io.read_volume`.
    """
    return as_binary(read_labels(path).volume, path)


def require_marked(labels: Labels, where: object) -> None:
    """Refuse a mask without a voxel.

    Raises:
        DataError: it is empty.
    """
    if not labels.volume.array.any():
        found = f"all zero; {labels.note}" if labels.note else "all zero"
        raise DataError("mask is empty", where=where, expected="at least one tumour voxel", found=found)


def as_binary(label: Volume, where: object) -> Volume:
    """The mask as uint8.

    Raises:
        DataError: it holds other values than 0 and 1.
    """
    if label.array.max() > 1:
        values = np.unique(label.array)
        marked = values[values > 0]
        value = marked[0] if len(marked) == 1 else "VALUE"
        hint = " (many organs: StructSeg's Task 1?)" if len(marked) > 1 else ""
        raise DataError(
            "mask is not binary",
            where=where,
            expected="0 and 1",
            found=f"values {format_distinct(values, _SHOWN)}",
            do=f"choose one structure: gtvray data import SRC DST --label {value}{hint}",
        )
    return label if label.array.dtype == np.uint8 else label.with_array(label.array.astype(np.uint8))


def require_grid(label: Volume, image: Volume, where: object, *, do: str) -> None:
    """Refuse a mask that does not lie on the grid of its scan.

    Raises:
        GeometryError: naming both grids, and how far apart they are where their shapes are equal.
    """
    if label.same_grid(image):
        return
    found = _describe_grid(label)
    if label.shape == image.shape:
        apart_mm = furthest_corner_mm(image.affine, label.affine, image.shape)
        found += f", up to {apart_mm:.2g} mm ({apart_mm / min(image.spacing_mm):.2g} voxels) apart"
        if apart_mm < min(image.spacing_mm) / 2:
            # Digits lost in a header, which add up over the grid.
            do = "if the mask was drawn on this scan and its header was rounded, give it the scan's affine"
    raise GeometryError(
        "mask is not on the scan's grid", where=where, expected=_describe_grid(image), found=found, do=do
    )


def in_order(cases: Iterable[Case], where: object) -> tuple[Case, ...]:
    """Cases in natural order of their ids, which are brought to Unicode's composed form.

    Raises:
        DataError: two of one id, or an id that cannot be a file's name, as masks are named by it.
    """
    # The same folder has decomposed names where macOS wrote it, and lists of patients have composed ones.
    cases = [replace(case, case_id=canonical_name(case.case_id)) for case in cases]
    unfit = [case.case_id for case in cases if not _is_fit_id(case.case_id)]
    if unfit:
        raise DataError(
            "a case id cannot be a file's name",
            where=where,
            expected=f"1 to {_MOST_ID_BYTES} bytes of UTF-8 without / and control characters, not beginning with a dot",
            found=", ".join(map(ascii, unfit[:5])),
            do="rename it",
        )
    ordered = sorted(cases, key=lambda case: natural_key(case.case_id))
    twice = [name for name, count in Counter(case.case_id for case in ordered).items() if count > 1]
    if twice:
        raise DataError(
            "two cases of one id", where=where, found=", ".join(twice[:5]), do="rename one, or move it away"
        )
    return tuple(ordered)


def _is_fit_id(case_id: str) -> bool:
    if not case_id or "/" in case_id or case_id.startswith(".") or not is_printable_name(case_id):
        return False
    return len(case_id.encode()) <= _MOST_ID_BYTES


def natural_key(name: str) -> list[tuple[int, int, str]]:
    """A sort key that puts 2 before 10."""
    parts = re.findall(r"\d+|\D+", name)
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts]


def split_ending(name: str) -> tuple[str, str] | None:
    """A volume file's name without its ending, and the ending; None for other files and for hidden ones."""
    ending = next((each for each in ENDINGS if name.lower().endswith(each)), None)
    # macOS leaves "._scan.nii.gz" beside "scan.nii.gz".
    if ending is None or name.startswith("."):
        return None
    return name[: -len(ending)], name[-len(ending) :]


def find_volume(folder: Path, stem: str) -> Path | None:
    """The one volume file of this stem in a folder, whatever its ending and its capitals, or None.

    Raises:
        DataError: two of them, or a link that leads nowhere.
    """
    named = [folder / f"{stem}{ending}" for ending in ENDINGS]
    found = [path for path in named if path.is_symlink() or path.is_file()] or [
        path
        for path in sorted(folder.iterdir())
        if (split_ending(path.name) or ("",))[0].lower() == stem and not path.is_dir()
    ]
    if len(found) > 1:
        raise DataError(
            "two files for one volume",
            where=folder,
            expected=f"one {stem} file",
            found=", ".join(path.name for path in found),
            do="keep the right one",
        )
    return require_file(found[0]) if found else None


def require_file(path: Path) -> Path:
    """The path, if a volume's file is there.

    Raises:
        DataError: no file, a link that leads nowhere, or an ending that a dataset's volumes may not have.
    """
    if not path.is_file():
        what = "a link leads nowhere" if path.is_symlink() else "a file of the dataset is missing"
        raise DataError(what, where=path, do="complete the download, or mend the link")
    if split_ending(path.name) is None:
        raise DataError(
            "not a file that a dataset may hold", where=path, expected=", ".join(ENDINGS), do="convert it to .nii.gz"
        )
    return path


def _describe_grid(volume: Volume) -> str:
    spacing = "x".join(f"{value:.3g}" for value in volume.spacing_mm)
    origin = ", ".join(f"{value:.1f}" for value in volume.affine[:3, 3])
    return f"{volume.shape} at {spacing} mm {volume.orientation} from ({origin})"
