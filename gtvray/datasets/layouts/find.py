"""Detection of a folder's layout, and the index of its cases."""

from __future__ import annotations

from pathlib import Path

from gtvray.datasets.layouts import LayoutName, structseg
from gtvray.datasets.layouts.cases import Dataset, natural_key
from gtvray.datasets.layouts.manifest import MANIFEST, read_manifest
from gtvray.datasets.layouts.registry import LAYOUTS
from gtvray.errors import DataError, NotFoundError
from gtvray.io import find_entry, find_listed, is_system_file, require_path, require_printable_path

_EXPECTED = "; or ".join(layout.FILES for layout in LAYOUTS.values())


def index_dataset(folder: str | Path, *, labels_required: bool = True) -> Dataset:
    """Index the cases of one structure in a folder of any layout.

    Args:
        folder: the folder of the cases, or one around it.
        labels_required: include only cases with a mask, and require one of every case that the layout does not list as
            a test case. Otherwise include all cases.

    Raises:
        NotFoundError: no such folder.
        DataError: no case, more than one dataset, a case without a scan or a required mask, or several structures.
    """
    dataset = find_dataset(folder, with_test=not labels_required)
    if labels_required:
        require_one_structure(dataset)
    return dataset


def require_one_structure(dataset: Dataset) -> None:
    """Refuse a dataset that lists several structures, or one of another value than 1.

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
        found=format_labels(dataset),
        do="choose one: gtvray data import SRC DST --label NAME",
    )


def format_labels(dataset: Dataset) -> str:
    """Format the structures of a dataset with their values, as in `core = 2, rest = 3`."""
    return ", ".join(f"{name} = {'+'.join(map(str, values))}" for name, values in dataset.labels.items())


def has_dataset(folder: Path) -> bool:
    """Return whether a folder, or a folder in it, is a dataset or has a dataset.json of an unknown layout."""
    return bool(_find_datasets(folder)) or (folder / MANIFEST).is_file()


def find_dataset(folder: str | Path, *, with_test: bool) -> Dataset:
    """Find the cases of a folder, whatever structures their masks hold.

    Args:
        folder: the folder of the cases, or one around it.
        with_test: include cases without a mask.

    Raises:
        InputError: the folder is a URI, or its path has control characters, or bytes that are not UTF-8.
        NotFoundError, DataError: as `index_dataset`, except for several structures.
    """
    require_path(folder)
    root = Path(folder)
    require_printable_path(root)
    if not root.is_dir():
        raise NotFoundError("no such folder", where=root, expected=_EXPECTED)
    found = _find_datasets(root)
    if len(found) > 1:
        raise DataError(
            "more than one dataset in this folder",
            where=root,
            found=", ".join(f"{home.relative_to(root)} ({name})" for home, name in found),
            do="name the folder of one, or move the others away",
        )
    if not found and find_entry(root, MANIFEST).is_file():
        raise DataError(
            "dataset.json is neither nnU-Net's nor the Decathlon's",
            where=root / MANIFEST,
            expected='"channel_names" (nnU-Net) or "modality" (Decathlon)',
            found=", ".join(read_manifest(root)) or "no keys",
        )
    if not found:
        entries = sorted(entry.name for entry in root.iterdir() if not is_system_file(entry.name))
        raise DataError(
            "no case in this folder",
            where=root,
            expected=_EXPECTED,
            found=", ".join(entries[:5]) or "an empty folder",
            do="name the folder that holds the cases",
        )
    (home, layout), *_ = found
    dataset = LAYOUTS[layout].find(home, with_test=with_test)
    if not dataset.cases:
        raise DataError("no case with a mask in this folder", where=home, expected=_EXPECTED)
    return dataset


def _find_datasets(root: Path) -> list[tuple[Path, LayoutName]]:
    """List the datasets in a folder with their layouts; the folder itself may be one."""
    # Hidden folders are left by a killed import, or kept by a tool; __MACOSX by an archive.
    visible = (entry for entry in root.iterdir() if not entry.name.startswith(".") and not is_system_file(entry.name))
    children = [entry for entry in visible if find_entry(entry, MANIFEST).is_file()]
    wrapped = [find_listed(root, path) for layout in LAYOUTS.values() for path in layout.WRAPPERS]
    candidates = [root, *wrapped, *sorted(children, key=lambda entry: natural_key(entry.name))]
    # A wrapper may also have been found as a child.
    candidates = list(dict.fromkeys(candidates))
    found = [(home, name) for home in candidates for name, layout in LAYOUTS.items() if layout.recognise(home)]
    # StructSeg's archive has the organs of Task 1 beside the tumours of Task 2; the tumours are then meant.
    without_organs = [each for each in found if each[0].name != structseg.ORGANS or each[0] == root]
    return without_organs or found
