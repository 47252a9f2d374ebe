"""The registry of dataset layouts.

To add a layout, write a module with the members of `Layout`, add its name to `LayoutName` in
`gtvray/datasets/layouts/__init__.py`, and add the module to `LAYOUTS`. Detection, import, export, blind export and the
options of `gtvray data` then include it, and `tests/datasets/test_layout_conformance.py` covers it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from gtvray.datasets.layouts import LayoutName, msd, nnunet, structseg
from gtvray.datasets.layouts.cases import Dataset


class Layout(Protocol):
    """The members that the module of a layout defines.

    Attributes:
        EXAMPLE_NAME: a folder name that the layout accepts.
        FILES: where scans and masks lie, for error messages.
        TEST_FOLDER: name of the folder of cases without a mask.
        FOLDERS: folders that readers of the layout expect, even if they are empty.
        WRAPPERS: relative paths at which archives of this layout keep the dataset's folder. Without a dataset.json they
            are the only folders that are searched below the given one, so EXAMPLE_NAME must be among them.
    """

    EXAMPLE_NAME: str
    FILES: str
    TEST_FOLDER: str
    FOLDERS: tuple[str, ...]
    WRAPPERS: tuple[str, ...]

    def recognise(self, folder: Path) -> bool:
        """Return whether a folder has this layout; False if it does not exist."""

    def find(self, folder: Path, *, with_test: bool) -> Dataset:
        """Find the cases of a folder; `with_test` includes those without a mask.

        Structure and metadata come from the manifest or, in a layout without one, from `manifest.read_record`.

        Raises:
            DataError: the folder contradicts the layout, or a file of a case is missing.
        """

    def require_name(self, folder: Path) -> None:
        """Refuse to write to a folder whose name other tools for this layout would not accept.

        Raises:
            InputError: naming an accepted name.
        """

    def file_paths(self, labelled: Mapping[str, bool]) -> dict[str, tuple[str, str | None]]:
        """Return the paths of scan and mask by case, relative to the dataset's folder.

        Args:
            labelled: case id -> whether the case has a mask.
        """

    def make_manifest(
        self, labelled: Mapping[str, bool], structure: str, about: Mapping[str, str]
    ) -> dict[str, Any] | None:
        """Return the content of dataset.json; None if the layout has no such file."""


# In the order in which a folder is compared with them.
LAYOUTS: dict[LayoutName, Layout] = {"structseg": structseg, "nnunet": nnunet, "msd": msd}
