"""Finding a dataset: which layout a folder has, and its cases."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from gtvray.datasets.layouts import msd, nnunet, structseg
from gtvray.datasets.layouts.cases import Dataset, LayoutName, natural_key
from gtvray.datasets.layouts.manifest import MANIFEST, read_manifest
from gtvray.errors import DataError, NotFoundError
from gtvray.io import find_entry, find_listed, is_system_file, require_printable_path

_EXPECTED = "<case>/data.nii.gz and <case>/label.nii.gz, or nnU-Net's or the Decathlon's dataset.json"


class Layout(Protocol):
    """What the module of a layout offers."""

    def recognise(self, folder: Path) -> bool:
        """Whether a folder has this layout."""

    def find(self, folder: Path, *, with_test: bool) -> Dataset:
        """The cases of a folder."""

    def places(self, labelled: Mapping[str, bool]) -> dict[str, tuple[str, str | None]]:
        """Where the files of each case go."""

    def index(self, labelled: Mapping[str, bool], structure: str, about: Mapping[str, str]) -> dict[str, Any] | None:
        """The content of dataset.json, if the layout has one."""


LAYOUTS: dict[LayoutName, Layout] = {"structseg": structseg, "nnunet": nnunet, "msd": msd}


def index_dataset(folder: str | Path, *, labels_required: bool = True) -> Dataset:
    """Find the cases of one structure in a folder of any layout.

    Args:
        folder: holds the cases, or is one of the folders around them.
        labels_required: only cases with a mask, and every case must have one, unless its layout keeps it apart as a
            test case. Otherwise all cases, those without a mask too.

    Raises:
        NotFoundError: no such folder.
        DataError: no case in it, more than one dataset, a case without a scan or without a mask, or several structures.
    """
    dataset = find_dataset(folder, with_test=not labels_required)
    if labels_required:
        require_one_structure(dataset)
    return dataset


def require_one_structure(dataset: Dataset) -> None:
    """Refuse masks that hold more than one structure, or mark it otherwise than by 1, as far as the layout tells.

    Raises:
        DataError: naming the structures and their values.
    """
    values = list(dataset.labels.values())
    if values in ([], [(1,)]):
        return
    raise DataError(
        "the masks hold several structures" if len(values) > 1 else "the structure is not marked by 1",
        where=dataset.root / MANIFEST,
        expected="one structure, of value 1",
        found=named_values(dataset),
        do="choose one: gtvray data import SRC DST --label NAME",
    )


def named_values(dataset: Dataset) -> str:
    """The structures of a dataset with their values, for people."""
    return ", ".join(f"{name} = {'+'.join(map(str, values))}" for name, values in dataset.labels.items())


def has_dataset(folder: Path) -> bool:
    """Whether a dataset of any layout, or a dataset.json of none, lies in or below a folder."""
    return bool(_homes(folder)) or (folder / MANIFEST).is_file()


def find_dataset(folder: str | Path, *, with_test: bool) -> Dataset:
    """Find the cases of a folder, whatever their masks hold.

    Args:
        folder: as `index_dataset`.
        with_test: cases without a mask as well.

    Raises:
        InputError: the folder's path has control characters, or bytes that are no UTF-8.
        NotFoundError, DataError: as `index_dataset`, several structures apart.
    """
    root = Path(folder)
    require_printable_path(root)
    if not root.is_dir():
        raise NotFoundError("no such folder", where=root, expected=_EXPECTED)
    homes = _homes(root)
    if len(homes) > 1:
        raise DataError(
            "more than one dataset in this folder",
            where=root,
            found=", ".join(f"{home.relative_to(root)} ({name})" for home, name in homes),
            do="name the folder of one, or move the others away",
        )
    if not homes and find_entry(root, MANIFEST).is_file():
        raise DataError(
            "dataset.json is neither nnU-Net's nor the Decathlon's",
            where=root / MANIFEST,
            expected='"channel_names" (nnU-Net) or "modality" (Decathlon)',
            found=", ".join(read_manifest(root)) or "nothing",
        )
    if not homes:
        entries = sorted(entry.name for entry in root.iterdir() if not is_system_file(entry.name))
        raise DataError(
            "no case in this folder",
            where=root,
            expected=_EXPECTED,
            found=", ".join(entries[:5]) or "nothing",
            do="name the folder that holds the cases",
        )
    (home, layout), *_ = homes
    dataset = LAYOUTS[layout].find(home, with_test=with_test)
    if not dataset.cases:
        raise DataError("no case with a mask in this folder", where=home, expected=_EXPECTED)
    return dataset


def _homes(root: Path) -> list[tuple[Path, LayoutName]]:
    """Every folder in or below which a dataset lies, with its layout."""
    # Hidden ones are what a killed import left, or a tool keeps.
    children = [e for e in root.iterdir() if not e.name.startswith(".") and find_entry(e, MANIFEST).is_file()]
    wrapped = [find_listed(root, name) for name in structseg.WRAPPERS]
    candidates = [root, *wrapped, *sorted(children, key=lambda entry: natural_key(entry.name))]
    homes = [(home, name) for home in candidates for name, layout in LAYOUTS.items() if layout.recognise(home)]
    # StructSeg's archive has the organs of Task 1 beside the GTVs of Task 2, which are then meant.
    with_gtv = [home for home in homes if home[0].name != structseg.ORGANS or home[0] == root]
    return with_gtv or homes
