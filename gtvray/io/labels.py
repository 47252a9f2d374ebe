"""Label volumes: masks of one or several structures, whose voxels are non-negative integers.

Some programs store labels as floats, or as integers with a scaling in the header, and the values read back then differ
slightly from the labels. Values within `TOLERANCE` of an integer are rounded, which is reported; any other value is an
error.
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
# Floats are read as float32, which has no fractional digits from here on.
_HIGHEST = 1 << 23
_SHOWN = 6
_DO_UNSCALED = "save the mask again as integers without scaling: scl_slope 1, scl_inter 0"
_DO_INTEGERS = "save the labels as unsigned integers; threshold a probability map first"


@dataclass(frozen=True)
class Labels:
    """A label volume.

    Attributes:
        volume: non-negative integers.
        note: how the stored values differ from these integers; empty if they do not.
        exact: whether the file stores exactly these integers, with neither scaling nor rounding.
    """

    volume: Volume
    note: str = ""
    exact: bool = True


def read_labels(path: str | os.PathLike[str]) -> Labels:
    """Read a label volume from a file of any supported format.

    Raises:
        DataError: a value is not within `TOLERANCE` of a non-negative integer.
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
    """Convert a volume to labels, rounding values within `TOLERANCE` of an integer.

    Args:
        volume: values with the scaling applied.
        where: source of the volume, for errors.
        scaling: scaling of the header, for errors and the note.

    Raises:
        DataError: a value is not within `TOLERANCE` of a non-negative integer.
    """
    array = volume.array
    if array.dtype.kind == "b":
        return Labels(volume.with_array(array.view(np.uint8)))
    if array.dtype.kind == "u":
        return Labels(volume)
    if array.dtype.kind == "i":
        if array.min() < 0:
            raise _not_labels(array[array < 0], array.size, where, scaling)
        return Labels(volume)
    return _rounded(volume, where, scaling)


def format_distinct(values: NDArray[Any], most: int) -> str:
    """Format the distinct values of an array in ascending order with all digits, at most `most` of them."""
    distinct = np.unique(values)
    shown = ", ".join(str(value) for value in distinct[:most])
    return shown + (", ..." if len(distinct) > most else "")


def _rounded(volume: Volume, where: object, scaling: Scaling | None) -> Labels:
    array = volume.array
    rounded = np.rint(array)
    with np.errstate(invalid="ignore"):
        difference = np.abs(array - rounded)
    # NaN compares false with everything, so this form rejects it.
    valid = (difference <= TOLERANCE) & (rounded >= 0) & (rounded <= _HIGHEST)
    if not valid.all():
        raise _not_labels(array[~valid], array.size, where, scaling)
    highest = int(rounded.max())
    dtype = np.min_scalar_type(highest)
    labels = volume.with_array(rounded.astype(dtype))
    changed = int(np.count_nonzero(difference))
    if not changed:
        return Labels(labels, exact=scaling is None)
    note = f"{changed} voxels differ from an integer by up to {float(difference.max()):.2g} and were rounded"
    return Labels(labels, note + _describe(scaling), exact=False)


def _not_labels(values: NDArray[Any], size: int, where: object, scaling: Scaling | None) -> DataError:
    return DataError(
        "mask values are not labels",
        where=where,
        expected=f"non-negative integers, to within {TOLERANCE:g}",
        found=f"{format_distinct(values, _SHOWN)} in {values.size} of {size} voxels{_describe(scaling)}",
        do=_DO_INTEGERS if scaling is None else _DO_UNSCALED,
    )


def _describe(scaling: Scaling | None) -> str:
    if scaling is None:
        return ""
    return f" (the header scales them: scl_slope {scaling.slope:.9g}, scl_inter {scaling.intercept:.9g})"
