"""Surfaces of 3-D masks: surface voxels, surfels with their areas, and distance maps.

HD95 and ASSD use surface voxels (mask xor its erosion). The surface Dice of Nikolov et al. 2021 (doi:10.2196/26151)
uses surfels: one between every eight neighbouring voxels, weighted by its area in mm².
"""

from __future__ import annotations

from functools import lru_cache
from itertools import combinations, product

import edt
import numpy as np
import numpy.typing as npt

from gtvray.geometry import Box

Mask = npt.NDArray[np.bool_]
Spacing = tuple[float, float, float]
Corner = tuple[int, ...]

_CORNERS: tuple[Corner, ...] = tuple(product((0, 1), repeat=3))


def crop_to_union(first: Mask, second: Mask) -> tuple[Mask, Mask]:
    """Crop two masks (i, j, k) to the box around their union, with a border of one empty voxel.

    The border gives a mask at the edge of its grid a surface there, as in MONAI.

    Raises:
        ValueError: both masks are empty.
    """
    box = Box.around(first | second)
    if box is None:
        raise ValueError("two empty masks have no union to crop to")
    return np.pad(first[box.slices], 1), np.pad(second[box.slices], 1)


def surface_voxels(mask: Mask) -> Mask:
    """Voxels of a mask with an empty face neighbour; the mask must have an empty border (`crop_to_union`)."""
    core = mask[1:-1, 1:-1, 1:-1].copy()
    for axis in range(3):
        for start in (0, 2):
            window = [slice(1, -1)] * 3
            window[axis] = slice(start, mask.shape[axis] - 2 + start)
            core &= mask[tuple(window)]
    surface = mask.copy()
    surface[1:-1, 1:-1, 1:-1] ^= core
    return surface


def distance_mm(surface: Mask, spacing_mm: Spacing) -> npt.NDArray[np.float32]:
    """Distance in mm of every voxel to the nearest voxel of `surface`, which must not be empty."""
    distance: npt.NDArray[np.float32] = edt.edt(~surface, anisotropy=spacing_mm)
    return distance


def surfel_areas_mm2(mask: Mask, spacing_mm: Spacing) -> npt.NDArray[np.float64]:
    """Area in mm² of the surfel between every eight neighbouring voxels, 0 off the surface; shape: the mask's - 1."""
    code = np.zeros(tuple(size - 1 for size in mask.shape), dtype=np.uint8)
    for bit, corner in enumerate(_CORNERS):
        window = tuple(slice(c, c + size) for c, size in zip(corner, code.shape, strict=True))
        code |= mask[window].view(np.uint8) << np.uint8(bit)
    return _area_table_mm2(spacing_mm)[code]


@lru_cache(maxsize=32)
def _area_table_mm2(spacing_mm: Spacing) -> npt.NDArray[np.float64]:
    """Surfel area in mm² for each of the 256 configurations of eight neighbouring voxels; bit b is `_CORNERS[b]`."""
    face_mm2 = np.prod(spacing_mm) / np.asarray(spacing_mm)
    table = np.zeros(256)
    for code in range(256):
        inside = [corner for bit, corner in enumerate(_CORNERS) if code >> bit & 1]
        # A mask and its complement share a surface; voxels of the smaller side do not connect across a diagonal.
        smaller = inside if len(inside) <= 4 else [corner for corner in _CORNERS if corner not in inside]
        normals = [normal for piece in _face_connected(smaller) for normal in _surfel_normals(piece)]
        table[code] = sum(float(np.linalg.norm(np.asarray(normal) * face_mm2)) for normal in normals)
    return table


def _face_connected(corners: list[Corner]) -> list[list[Corner]]:
    pieces: list[list[Corner]] = []
    for corner in corners:
        joined = [piece for piece in pieces if any(_axis_between(corner, other) is not None for other in piece)]
        pieces = [piece for piece in pieces if piece not in joined]
        pieces.append([corner, *(other for piece in joined for other in piece)])
    return pieces


def _axis_between(first: Corner, second: Corner) -> int | None:
    """The axis along which two corners are face neighbours; None if they are not."""
    differing = [axis for axis in range(3) if first[axis] != second[axis]]
    return differing[0] if len(differing) == 1 else None


def _surfel_normals(piece: list[Corner]) -> list[tuple[float, ...]]:
    """Unsigned area vectors, in units of voxel faces, of the flat parts of the surface around `piece`.

    The surface passes through the midpoints of the cube edges between the piece and the rest, as in marching cubes.
    """
    links = [(pair, axis) for pair in combinations(piece, 2) if (axis := _axis_between(*pair)) is not None]
    axes = [axis for _, axis in links]
    unused = next((axis for axis in range(3) if axis not in axes), 0)
    if len(piece) == 1:
        return [(0.125, 0.125, 0.125)]
    if len(piece) == 2:
        return [tuple(0.0 if axis == axes[0] else 0.5 for axis in range(3))]
    if len(piece) == 3:
        return [_along(unused, 0.5), (0.375, 0.375, 0.375)]
    if len(links) == 4:
        return [_along(unused, 1.0)]
    degrees = {corner: sum(corner in pair for pair, _ in links) for corner in piece}
    if max(degrees.values()) == 3:
        return [(0.75, 0.75, 0.75)]
    # A bent chain of four: a slanted quad across each end link, and the two triangles between them.
    ends = [axis for pair, axis in links if min(degrees[corner] for corner in pair) == 1]
    quads = [tuple(0.0 if axis == end else 0.25 for axis in range(3)) for end in ends]
    return [*quads, (0.5, 0.5, 0.5)]


def _along(axis: int, area: float) -> tuple[float, ...]:
    return tuple(area if other == axis else 0.0 for other in range(3))
