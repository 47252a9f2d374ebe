"""A small volume, offsets of NIfTI-1 header fields, and a function that overwrites them."""

from __future__ import annotations

import numpy as np

from gtvray.geometry import Volume

AFFINE = np.array([[-0.9765625, 0, 0, 250.5], [0, -0.9765625, 0, 120.25], [0, 0, 2.5, -700.75], [0, 0, 0, 1]])
# Offsets in a NIfTI-1 header.
DIM, DATATYPE, PIXDIM, VOX_OFFSET, SLOPE, XYZT_UNITS = 40, 70, 76, 108, 112, 123
QFORM_CODE, QUATERN, SROW, MAGIC = 252, 256, 280, 344


def made_volume(dtype: str = "int16", shape: tuple[int, int, int] = (5, 6, 7), affine: np.ndarray = AFFINE) -> Volume:
    """Random integers from -50 to 49, from 0 to 99 for unsigned types."""
    values = np.random.default_rng(0).integers(0, 100, shape)
    return Volume((values - (50 if dtype[0] != "u" else 0)).astype(dtype), affine)


def patched(content: bytes, **patches: tuple[int, bytes]) -> bytes:
    """Overwrite bytes at the given offsets."""
    changed = bytearray(content)
    for offset, new in patches.values():
        changed[offset : offset + len(new)] = new
    return bytes(changed)
