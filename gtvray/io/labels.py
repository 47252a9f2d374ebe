"""The one reader of label volumes: masks of one structure or several, whose voxels are whole numbers from 0.

Other programs store labels as floats, or as integers with a scaling in the header, and the values that are read back
are then a little beside the labels. What is within `TOLERANCE` of a whole number is that number, and is reported; any
other value is refused and never compared with a label.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gtvray.errors import DataError
from gtvray.geometry import Volume
from gtvray.io.nifti import Scaling
from gtvray.io.stream import MAX_VOLUME_BYTES
from gtvray.io.volumes import decode_scaled_volume, read_scaled_volume

TOLERANCE = 1e-3
# From here on float32, as which floats are read, has no digits after the point.
_HIGHEST = 1 << 23
_SHOWN = 6
_DO_UNSCALED = "save the mask again as integers without scaling: scl_slope 1, scl_inter 0"
_DO_WHOLE = "save the labels as unsigned integers; a probability map has to be thresholded first"


@dataclass(frozen=True)
class Labels:
    """A label volume.

    Attributes:
        volume: integers from 0.
        note: how the stored values differ from them; empty if they do not.
        exact: whether the file holds these very integers, with neither scaling nor rounding.
    """

    volume: Volume
    note: str = ""
    exact: bool = True


def read_labels(path: str | os.PathLike[str]) -> Labels:
    """Read a label volume from a file of any supported format.

    Raises:
        DataError: a value is not within `TOLERANCE` of a whole number from 0.
        NotFoundError, VolumeError, GeometryError, TooLargeError: as `read_volume`.
    """
    volume, scaling = read_scaled_volume(path)
    return as_labels(volume, path, scaling)


def decode_labels(content: bytes, where: object = "upload", limit_bytes: int = MAX_VOLUME_BYTES) -> Labels:
    """Read a label volume from bytes in memory.

    Raises:
        as `read_labels`.
    """
    volume, scaling = decode_scaled_volume(content, where, limit_bytes)
    return as_labels(volume, where, scaling)


def as_labels(volume: Volume, where: object, scaling: Scaling | None = None) -> Labels:
    """Take a volume's values for labels.

    Args:
        volume: its values, with the scaling applied.
        where: what to name in an error.
        scaling: of the header it was read from.

    Raises:
        DataError: a value is not within `TOLERANCE` of a whole number from 0.
    """
    array = volume.array
    if array.dtype.kind == "b":
        return Labels(volume.with_array(array.view(np.uint8)))
    if array.dtype.kind == "u":
        return Labels(volume)
    if array.dtype.kind == "i":
        if array.min() < 0:
            raise _no_labels(array[array < 0], array.size, where, scaling)
        return Labels(volume)
    return _rounded(volume, where, scaling)


def format_distinct(values: NDArray[Any], most: int) -> str:
    """The distinct values of an array with all their digits, in ascending order, cut off after `most`."""
    distinct = np.unique(values)
    shown = ", ".join(str(value) for value in distinct[:most])
    return shown + (", ..." if len(distinct) > most else "")


def _rounded(volume: Volume, where: object, scaling: Scaling | None) -> Labels:
    array = volume.array
    whole = np.rint(array)
    with np.errstate(invalid="ignore"):
        apart = np.abs(array - whole)
    # Written so that NaN, which compares false with everything, is not a label.
    sound = (apart <= TOLERANCE) & (whole >= 0) & (whole <= _HIGHEST)
    if not sound.all():
        raise _no_labels(array[~sound], array.size, where, scaling)
    highest = int(whole.max())
    dtype = np.min_scalar_type(highest)
    labels = volume.with_array(whole.astype(dtype))
    moved = int(np.count_nonzero(apart))
    if not moved:
        return Labels(labels, exact=scaling is None)
    note = f"{moved} voxels are up to {float(apart.max()):.2g} beside a whole number and are taken for it"
    return Labels(labels, note + _of(scaling), exact=False)


def _no_labels(values: NDArray[Any], size: int, where: object, scaling: Scaling | None) -> DataError:
    return DataError(
        "mask values are not labels",
        where=where,
        expected=f"whole numbers from 0, to within {TOLERANCE:g}",
        found=f"{format_distinct(values, _SHOWN)} in {values.size} of {size} voxels{_of(scaling)}",
        do=_DO_WHOLE if scaling is None else _DO_UNSCALED,
    )


def _of(scaling: Scaling | None) -> str:
    if scaling is None:
        return ""
    return f" (the header scales them: scl_slope {scaling.slope:.9g}, scl_inter {scaling.intercept:.9g})"
