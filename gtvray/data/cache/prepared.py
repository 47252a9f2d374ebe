"""A prepared case: HU and mask on the prepared grid, read in boxes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import blosc2
import numpy as np
from numpy.typing import NDArray

from gtvray.errors import ResourceError
from gtvray.geometry import Box, Volume
from gtvray.preprocessing import Prepared

MIRRORED = "mirrored.b2nd"


@dataclass(frozen=True)
class CachedCase:
    """A prepared case on disk; reading a box decompresses only the blocks it touches.

    Files are opened for each read, which takes a twentieth of a millisecond, so the numbers of cases and threads are
    not limited by the number of open files.
    """

    case_id: str
    folder: Path
    meta: dict[str, Any]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Size on the prepared grid."""
        i, j, k = self.meta["shape"]
        return i, j, k

    def read(self, box: Box) -> tuple[NDArray[np.int16], NDArray[np.uint8]]:
        """HU and mask in a box of the prepared grid.

        Raises:
            ResourceError: the case is no longer in the cache.
        """
        return _read(self.folder / "hu.b2nd", box), _read(self.folder / "mask.b2nd", box)

    def read_mirrored(self, box: Box) -> NDArray[np.int16] | None:
        """HU of the mirrored scan in a box of the prepared grid; None without `preprocessing.mirrored`.

        Raises:
            ResourceError: the case is no longer in the cache.
        """
        return _read(self.folder / MIRRORED, box) if self.meta.get("mirrored") else None

    def whole(self) -> tuple[Prepared, NDArray[np.uint8]]:
        """The complete case as a prepared scan, and its mask.

        Raises:
            ResourceError: the case is no longer in the cache.
        """
        box = Box.whole(self.shape)
        hu, mask = self.read(box)
        grid = Volume(hu, np.asarray(self.meta["affine"]))
        return Prepared(grid, grid.affine, grid.shape, mirrored=self.read_mirrored(box)), mask

    def foreground_ijk(self) -> NDArray[np.int32]:
        """Tumour voxels, at most 4,096 of them at even intervals, shape (n, 3)."""
        with _missing_reported(self.folder):
            return np.asarray(np.load(self.folder / "foreground.npy"))


def _read(path: Path, box: Box) -> NDArray[Any]:
    with _missing_reported(path.parent):
        # Memory-mapped, so that only the needed blocks are read. One thread: a pool would be started for each file.
        array = blosc2.open(str(path), mode="r", mmap_mode="r", dparams={"nthreads": 1})
        return np.asarray(array[box.slices])


@contextmanager
def _missing_reported(folder: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise ResourceError(
            "a prepared case is missing from the cache",
            where=folder,
            found="evicted after the run that requested it had ended, or removed by hand",
            do="run again: missing cases are prepared again",
        ) from error
