"""NRRD volumes, with header and voxels in one file (`.nrrd`) or in two (`.nhdr`).

Standard: https://teem.sourceforge.net/nrrd/format.html

3D Slicer's `.seg.nrrd` is an NRRD file: with all segments in one layer it reads as a label volume, and the names,
colours and terminology of the segments are ignored.

Redundant information must agree: `dimension` with `sizes`, `space directions` and `kinds`; `space` with
`space dimension` and the number of components; `spacings` with the lengths of the directions; `sizes` and `type` with
the exact number of bytes; gzipped voxels with their checksum. `space directions` and `space origin` are not redundant.
"""

from __future__ import annotations

import math
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, Literal

import numpy as np
from isal import igzip
from numpy.typing import NDArray

from gtvray.errors import GeometryError, VolumeError
from gtvray.geometry import Volume, check_affine
from gtvray.io.headers import VolumeHeader
from gtvray.io.names import find_listed
from gtvray.io.nrrd_header import Header, parse_header
from gtvray.io.stream import DO_EXPORT, GZIP_LEVEL, MAX_VOLUME_BYTES, Source, open_regular_file, to_finite

_TYPES = {
    "i1": ("signed char", "int8", "int8_t"),
    "u1": ("uchar", "unsigned char", "uint8", "uint8_t"),
    "i2": ("short", "short int", "signed short", "signed short int", "int16", "int16_t"),
    "u2": ("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"),
    "i4": ("int", "signed int", "int32", "int32_t"),
    "u4": ("uint", "unsigned int", "uint32", "uint32_t"),
    "i8": ("longlong", "long long", "long long int", "signed long long", "signed long long int", "int64", "int64_t"),
    "u8": ("ulonglong", "unsigned long long", "unsigned long long int", "uint64", "uint64_t"),
    "f4": ("float",),
    "f8": ("double",),
}
_DTYPES = {name: dtype for dtype, names in _TYPES.items() for name in names}
_ENDIANS: dict[str, Literal["<", ">"]] = {"little": "<", "big": ">"}
_ENCODINGS = {"raw": False, "gzip": True, "gz": True}
# Signs that convert the axes of a space to right, anterior, superior.
_SPACES = {
    "right-anterior-superior": (1, 1, 1),
    "ras": (1, 1, 1),
    "left-anterior-superior": (-1, 1, 1),
    "las": (-1, 1, 1),
    "left-posterior-superior": (-1, -1, 1),
    "lps": (-1, -1, 1),
}
_MOST_SKIP = 1 << 24
_SPACING_TOLERANCE = 0.01
_UNITS_MM = {"mm": 1.0, "millimeter": 1.0, "millimeters": 1.0, "": 1.0, "cm": 10.0, "m": 1000.0, "um": 0.001}

Vector = tuple[float, float, float]


def is_nrrd(start: bytes) -> bool:
    """Whether the first bytes of a file, at least four, are an NRRD header's."""
    return start[:4] == b"NRRD"


def read_nrrd(source: Source, start: bytes, limit_bytes: int = MAX_VOLUME_BYTES, folder: Path | None = None) -> Volume:
    """Read a volume whose first four bytes, `start`, have already been consumed.

    Args:
        source: the file.
        start: its first four bytes.
        limit_bytes: maximum decompressed size.
        folder: folder of a detached data file; None refuses detached voxels.

    Raises:
        as `gtvray.io.read_volume`.
    """
    header = parse_header(source, start)
    shape, affine = _grid(header)
    if header.get("data file") is None:
        voxels = _voxels(source, header, shape, limit_bytes)
    else:
        path = _data_file(header, folder)
        with open_regular_file(path) as file:
            voxels = _voxels(Source(file, path, sniff=False), header, shape, limit_bytes)
    return Volume(to_finite(voxels, source.where), affine)


def read_nrrd_header(
    source: Source, start: bytes, limit_bytes: int = MAX_VOLUME_BYTES, folder: Path | None = None
) -> VolumeHeader:
    """Read the header of a volume whose first four bytes, `start`, have already been consumed, but no voxels.

    Raises:
        as `read_nrrd`, as far as the header shows it.
    """
    header = parse_header(source, start)
    shape, affine = _grid(header)
    if header.get("data file") is not None:
        return VolumeHeader(shape, _dtype(header), affine, is_scaled=False, data_file=_data_file(header, folder))
    dtype = _at_voxels(source, header)
    source.check_size(shape, dtype, limit_bytes)
    return VolumeHeader(shape, dtype, affine, is_scaled=False)


def encode_nrrd(volume: Volume) -> bytes:
    """Encode a volume as an NRRD file in left-posterior-superior space with gzipped voxels."""
    array = volume.array.astype(np.uint8) if volume.array.dtype == np.bool_ else volume.array
    affine_lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ volume.affine
    names = _TYPES[f"{array.dtype.kind}{array.dtype.itemsize}"]
    lines = [
        "NRRD0004",
        f"type: {names[0]}",
        "dimension: 3",
        "space: left-posterior-superior",
        f"sizes: {' '.join(map(str, volume.shape))}",
        f"space directions: {' '.join(_vector(affine_lps[:3, axis]) for axis in range(3))}",
        "kinds: domain domain domain",
        "endian: little",
        "encoding: gzip",
        f"space origin: {_vector(affine_lps[:3, 3])}",
    ]
    voxels = array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes(order="F")
    content: bytes = "\n".join([*lines, "", ""]).encode() + igzip.compress(voxels, GZIP_LEVEL, mtime=0)
    return content


def _vector(values: NDArray[np.float64]) -> str:
    """Format a vector with enough digits to restore its numbers exactly; adding 0.0 turns -0.0 into 0.0."""
    return f"({','.join(repr(float(value) + 0.0) for value in values)})"


def _grid(header: Header) -> tuple[tuple[int, int, int], NDArray[np.float64]]:
    directions = _directions(header)
    shape = _shape(header, directions)
    _check_spacings(header, directions)
    return shape, check_affine(_affine(header, directions), header.where)


def _voxels(source: Source, header: Header, shape: tuple[int, int, int], limit_bytes: int) -> NDArray[Any]:
    return source.read_voxels(shape, _at_voxels(source, header), limit_bytes)


def _at_voxels(source: Source, header: Header) -> np.dtype[Any]:
    """Advance a file to its voxels, and return their type."""
    dtype = _dtype(header)
    skip = header.integer("byte skip", 0)
    if skip > _MOST_SKIP or header.integer("line skip", 0):
        raise header.invalid(
            "byte skip" if skip > _MOST_SKIP else "line skip",
            "voxels at the beginning of the file",
            "save the volume again as one .nrrd or .nii.gz file",
        )
    if header.choice("encoding", _ENCODINGS, "save the volume again with encoding raw or gzip"):
        source.inflate()
    source.read(skip)
    return dtype


def _shape(header: Header, directions: list[Vector | None]) -> tuple[int, int, int]:
    """Sizes of the three spatial axes; any other axis must have one sample."""
    sizes = header.integers("sizes", len(directions))
    if header.get("kinds") is not None:
        header.words("kinds", len(directions))
    spatial = [size for size, vector in zip(sizes, directions, strict=True) if vector is not None]
    others = [size for size, vector in zip(sizes, directions, strict=True) if vector is None]
    if len(spatial) != 3 or min(spatial) < 1 or any(size != 1 for size in others):
        raise VolumeError(
            "file is not a single three-dimensional volume",
            where=header.where,
            expected="three axes with a direction in space; one sample on any other",
            found=f"sizes {header['sizes']}, space directions {header['space directions']}",
            do="save one volume, or all segments in one layer",
        )
    return spatial[0], spatial[1], spatial[2]


def _dtype(header: Header) -> np.dtype[Any]:
    dtype = np.dtype(header.choice("type", _DTYPES))
    return dtype if dtype.itemsize == 1 else dtype.newbyteorder(header.choice("endian", _ENDIANS))


def _directions(header: Header) -> list[Vector | None]:
    """Direction of each axis, None for a non-spatial one.

    Raises:
        GeometryError: the header has no affine.
    """
    missing = [name for name in ("space", "space directions", "space origin") if header.get(name) is None]
    if missing:
        raise GeometryError(
            "header has no affine",
            where=header.where,
            expected="space, space directions and space origin",
            found="no " + ", no ".join(missing),
            do=DO_EXPORT,
        )
    return header.vectors("space directions", header.axes())


def _check_spacings(header: Header, directions: list[Vector | None]) -> None:
    """Check `spacings`, optional beside directions, against the lengths of the directions."""
    if header.get("spacings") is None:
        return
    lengths = [0.0 if vector is None else math.hypot(*vector) for vector in directions]
    spacings = header.numbers("spacings", len(directions))
    for spacing, length in zip(spacings, lengths, strict=True):
        if length and math.isfinite(spacing) and abs(spacing - length) > _SPACING_TOLERANCE * length:
            raise GeometryError(
                "spacings and space directions give different voxel spacings",
                where=header.where,
                expected="the same spacing in both, because programs differ in which one they use",
                found=f"{header['spacings']}, and directions {header['space directions']}",
                do="find out which is correct and set both to it, or remove spacings",
            )


def _affine(header: Header, directions: list[Vector | None]) -> NDArray[np.float64]:
    """The affine from voxel indices to RAS millimetres."""
    signs = header.choice("space", _SPACES, "save the volume in a patient space, for example left-posterior-superior")
    if header.integer("space dimension", 3) != 3:
        raise header.invalid("space dimension", "3, the dimension of the space")
    scale_mm = np.asarray(signs, dtype=np.float64)
    if header.get("space units") is not None:
        units = header.words("space units", 3)
        if not all(unit.lower() in _UNITS_MM for unit in units):
            raise header.invalid("space units", "units of length, such as mm")
        scale_mm = scale_mm * [_UNITS_MM[unit.lower()] for unit in units]
    (origin,) = header.vectors("space origin", 1)
    if origin is None:
        raise header.invalid("space origin", "(x,y,z)")
    affine = np.eye(4)
    columns = [vector for vector in directions if vector is not None]
    with np.errstate(over="ignore"):  # non-finite values raise an error instead
        affine[:3, :3] = scale_mm[:, None] * np.transpose(columns)
        affine[:3, 3] = scale_mm * origin
    return affine


def _data_file(header: Header, folder: Path | None) -> Path:
    """The single data file of a detached header, in the header's folder or below it.

    Raises:
        VolumeError: the header names several files, or one outside this folder.
    """
    name = header["data file"]
    do = "save the volume again as one .nrrd or .nii.gz file"
    if folder is None:
        raise header.invalid("data file", "voxels in the same file as the header", do)
    if name.split(maxsplit=1)[:1] == ["LIST"] or "%" in name or not name:
        raise header.invalid("data file", "one file", do)
    # The header may be from any system, so both path syntaxes are checked.
    paths = PurePosixPath(name), PureWindowsPath(name)
    if any(path.anchor or ".." in path.parts for path in paths):
        raise header.invalid("data file", "a path within the header's folder", do)
    return find_listed(folder, name)
