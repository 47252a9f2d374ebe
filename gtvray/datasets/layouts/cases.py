"""Cases and datasets, independent of the layout of their files."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from gtvray.datasets.layouts import LayoutName
from gtvray.errors import DataError, GeometryError, InputError
from gtvray.geometry import Volume, furthest_corner_mm
from gtvray.io import Labels, canonical_name, format_distinct, is_printable_name, read_labels, read_text

# Endings of scans and masks; the content decides the format. Not .nhdr: its voxels are in another file, which the
# digest of the header would not cover.
ENDINGS = (".nii.gz", ".nii", ".seg.nrrd", ".nrrd")
_SHOWN = 12
# Files named after a case have up to 50 more bytes, and file systems accept 255.
_MAX_ID_BYTES = 200


@dataclass(frozen=True)
class Case:
    """A scan and, if there is one, its mask."""

    case_id: str
    image: Path
    label: Path | None


@dataclass(frozen=True)
class Dataset:
    """The cases under a folder, in natural order.

    Attributes:
        root: the folder that holds the cases.
        structure: name of the contoured structure; several names are separated by commas.
        cases: cases with a mask, and on request those without.
        layout: the layout of the files.
        labels: structure -> its values in the masks, without the background; empty if the layout does not list them.
        about: metadata of the dataset: name, licence, reference and the like.
        remark: a note on the structure for the user.
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
        """Number of cases and structure, as in `50 cases of GTV`."""
        return f"{len(self.cases)} cases of {self.structure}" + (f" ({self.remark})" if self.remark else "")

    @property
    def licence(self) -> str:
        """The licence that the dataset's metadata or the first line of its licence file state."""
        stated = self.about.get("licence") or self.about.get("license")
        if stated:
            return str(stated)
        for file in sorted(self.root.glob("LICEN[SC]E*")):
            try:
                lines = read_text(file).strip().splitlines()
            except InputError:
                # A folder, or another encoding: the licence is information only.
                continue
            if lines:
                return lines[0].strip("# ")[:200]
        return "not stated"

    def subset(self, case_ids: tuple[str, ...]) -> tuple[Case, ...]:
        """Return the cases with these ids, in the order of the ids."""
        by_id = {case.case_id: case for case in self.cases}
        return tuple(by_id[case_id] for case_id in case_ids)


def read_mask(case: Case, image: Volume) -> Labels:
    """Read the mask of a case and check that it is on the grid of the scan.

    Returns:
        the mask with the stored labels: one structure, several or none.

    Raises:
        DataError: the case has no mask, or its values are not labels.
        GeometryError: the mask is on another grid.
        VolumeError: the file is damaged.
    """
    if case.label is None:
        raise DataError("case has no mask", where=case.image.parent, expected="a mask beside the scan")
    labels: Labels = read_labels(case.label)
    require_grid(labels.volume, image, case.label, do="export both from the same series")
    return labels


def read_label(case: Case, image: Volume) -> Volume:
    """Read the mask of a case for training and scoring.

    Returns:
        a uint8 mask of 0 and 1 on the scan's grid.

    Raises:
        DataError: the mask is empty or has other values than 0 and 1.
        GeometryError, VolumeError: as `read_mask`.
    """
    return read_label_with_note(case, image)[0]


def read_label_with_note(case: Case, image: Volume) -> tuple[Volume, str]:
    """Read a mask as `read_label`, with a note on how the stored values deviated from integers, or "".

    Raises:
        DataError, GeometryError, VolumeError: as `read_label`.
    """
    labels = read_mask(case, image)
    require_not_empty(labels, case.label)
    return as_binary(labels.volume, case.label), labels.note


def read_binary(path: Path) -> Volume:
    """Read a mask of one structure that may be empty, such as a prediction.

    Returns:
        a uint8 mask of 0 and 1.

    Raises:
        DataError: the mask has other values than 0 and 1.
        NotFoundError, VolumeError, GeometryError: as `gtvray.io.read_volume`.
    """
    return as_binary(read_labels(path).volume, path)


def require_not_empty(labels: Labels, where: object) -> None:
    """Refuse a mask without a marked voxel.

    Raises:
        DataError: the mask is empty.
    """
    if not labels.volume.array.any():
        found = f"all zero; {labels.note}" if labels.note else "all zero"
        raise DataError("mask is empty", where=where, expected="at least one tumour voxel", found=found)


def as_binary(label: Volume, where: object) -> Volume:
    """Convert a mask to uint8.

    Raises:
        DataError: the mask has other values than 0 and 1.
    """
    if label.array.max() > 1:
        values = np.unique(label.array)
        marked = values[values > 0]
        value = marked[0] if len(marked) == 1 else "VALUE"
        hint = " (several organs: StructSeg's Task 1?)" if len(marked) > 1 else ""
        raise DataError(
            "mask is not binary",
            where=where,
            expected="0 and 1",
            found=f"values {format_distinct(values, _SHOWN)}",
            do=f"choose one structure: gtvray data import SRC DST --label {value}{hint}",
        )
    return label if label.array.dtype == np.uint8 else label.with_array(label.array.astype(np.uint8))


def require_grid(label: Volume, image: Volume, where: object, *, do: str) -> None:
    """Refuse a mask that is not on the grid of its scan.

    Raises:
        GeometryError: naming both grids and, if their shapes are equal, the distance between them.
    """
    if label.same_grid(image):
        return
    found = _describe_grid(label)
    if label.shape == image.shape:
        apart_mm = furthest_corner_mm(image.affine, label.affine, image.shape)
        found += f", up to {apart_mm:.2g} mm ({apart_mm / min(image.spacing_mm):.2g} voxels) apart"
        if apart_mm < min(image.spacing_mm) / 2:
            # Rounded header values accumulate over the grid.
            do = "if the mask was drawn on this scan and its header was rounded, give it the scan's affine"
    raise GeometryError(
        "mask is not on the scan's grid", where=where, expected=_describe_grid(image), found=found, do=do
    )


def order_cases(cases: Iterable[Case], where: object) -> tuple[Case, ...]:
    """Sort cases in natural order of their ids, after converting the ids to Unicode's composed form (NFC).

    Raises:
        DataError: two cases with one id, or an id that is not usable as a file name, since masks are named after it.
    """
    # macOS writes decomposed file names, while lists of patients have composed ids.
    cases = [replace(case, case_id=canonical_name(case.case_id)) for case in cases]
    unfit = [case.case_id for case in cases if not _is_fit_id(case.case_id)]
    if unfit:
        raise DataError(
            "a case id cannot be used as a file name",
            where=where,
            expected=f"1 to {_MAX_ID_BYTES} bytes of UTF-8 without / and control characters, not starting with a dot",
            found=", ".join(map(ascii, unfit[:5])),
            do="rename it",
        )
    ordered = sorted(cases, key=lambda case: natural_key(case.case_id))
    twice = [name for name, count in Counter(case.case_id for case in ordered).items() if count > 1]
    if twice:
        raise DataError(
            "two cases have the same id", where=where, found=", ".join(twice[:5]), do="rename one, or move it away"
        )
    return tuple(ordered)


def _is_fit_id(case_id: str) -> bool:
    if not case_id or "/" in case_id or case_id.startswith(".") or not is_printable_name(case_id):
        return False
    return len(case_id.encode()) <= _MAX_ID_BYTES


def natural_key(name: str) -> list[tuple[int, int, str]]:
    """Return a sort key that orders 2 before 10."""
    parts = re.findall(r"\d+|\D+", name)
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts]


def split_ending(name: str) -> tuple[str, str] | None:
    """Split a volume's file name into stem and ending; None for other files and for hidden ones."""
    ending = next((each for each in ENDINGS if name.lower().endswith(each)), None)
    # macOS writes "._scan.nii.gz" beside "scan.nii.gz".
    if ending is None or name.startswith("."):
        return None
    return name[: -len(ending)], name[-len(ending) :]


def find_volume(folder: Path, stem: str) -> Path | None:
    """Find the volume file with this stem in a folder, with any ending and in any letter case; None without one.

    Raises:
        DataError: two such files, or a broken link.
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
            do="keep the correct one",
        )
    return require_file(found[0]) if found else None


def require_file(path: Path) -> Path:
    """Return the path of a volume if the file exists and has an accepted ending.

    Raises:
        DataError: no file, a broken link, or another ending than `ENDINGS`.
    """
    if not path.is_file():
        what = "a link is broken" if path.is_symlink() else "a file of the dataset is missing"
        raise DataError(what, where=path, do="complete the download, or repair the link")
    if split_ending(path.name) is None:
        raise DataError(
            "not a volume format for datasets", where=path, expected=", ".join(ENDINGS), do="convert it to .nii.gz"
        )
    return path


def _describe_grid(volume: Volume) -> str:
    spacing = "x".join(f"{value:.3g}" for value in volume.spacing_mm)
    origin = ", ".join(f"{value:.1f}" for value in volume.affine[:3, 3])
    return f"{volume.shape} at {spacing} mm {volume.orientation} from ({origin})"
