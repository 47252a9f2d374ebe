"""NIfTI-1 and NIfTI-2 volumes; the file size is checked against the header before allocation.

Standard: https://nifti.nimh.nih.gov/nifti-1/documentation/nifti1fields

Redundant information must agree (docs/decisions/0008-contradicting-headers.md):

- the header size with its magic bytes, and so with the byte order;
- `datatype` with `bitpix`, unless the latter is 0;
- `dim`, `datatype` and `vox_offset` with the exact number of bytes;
- qform with sform and `pixdim` (in `gtvray/io/nifti_grid.py`);
- in a `.nii.gz`, every byte with the checksum and length of the gzip stream.

`scl_slope` and `scl_inter` are not redundant, nor are the voxels of a plain `.nii`.
"""

from __future__ import annotations

import struct
from typing import Any, NamedTuple

import nibabel
import numpy as np
from isal import igzip
from nibabel.nifti1 import Nifti1Header
from nibabel.nifti2 import Nifti2Header
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

from gtvray.errors import VolumeError
from gtvray.geometry import Volume, check_affine, furthest_corner_mm
from gtvray.io.headers import VolumeHeader
from gtvray.io.nifti_grid import header_affine
from gtvray.io.stream import DO_EXPORT, GZIP_LEVEL, MAX_VOLUME_BYTES, Source, to_finite

# Header size, stored in the first four bytes -> header class and magic bytes.
_KINDS: dict[int, tuple[type[Nifti1Header], bytes]] = {
    348: (Nifti1Header, b"n+1\0"),
    540: (Nifti2Header, b"n+2\0\r\n\x1a\n"),
}
_MAGICS = {
    start: (*kind, order) for n, kind in _KINDS.items() for order in "<>" for start in [struct.pack(order + "i", n)]
}
_MOST_OFFSET = 1 << 24


class Scaling(NamedTuple):
    """A header's linear scaling: value = slope * stored + intercept (scl_slope, scl_inter)."""

    slope: float
    intercept: float


def is_nifti(start: bytes) -> bool:
    """Whether the first bytes of a file, at least four, are a NIfTI header's."""
    return start[:4] in _MAGICS


def read_nifti(source: Source, start: bytes, limit_bytes: int = MAX_VOLUME_BYTES) -> Volume:
    """Read a volume whose first four bytes, `start`, have already been consumed.

    Raises:
        as `gtvray.io.read_volume`.
    """
    return read_scaled_nifti(source, start, limit_bytes)[0]


def read_scaled_nifti(
    source: Source, start: bytes, limit_bytes: int = MAX_VOLUME_BYTES
) -> tuple[Volume, Scaling | None]:
    """Read as `read_nifti`; also return the applied scaling, None if the header has none.

    Raises:
        as `gtvray.io.read_volume`.
    """
    header, scaling = _read_checked(source, start, limit_bytes)
    array = source.read_voxels(header.shape, header.dtype, limit_bytes)
    array = to_finite(array, source.where) if scaling is None else _scaled(array, scaling, source.where)
    return Volume(array, header.affine), scaling


def read_nifti_header(source: Source, start: bytes, limit_bytes: int = MAX_VOLUME_BYTES) -> VolumeHeader:
    """Read the header of a volume whose first four bytes, `start`, have already been consumed, but no voxels.

    Raises:
        as `read_nifti`, as far as the header shows it.
    """
    return _read_checked(source, start, limit_bytes)[0]


def encode_nifti(volume: Volume, *, compress: bool) -> bytes:
    """Encode a volume as a NIfTI-1 file with its affine in both sform and qform (code 1, scanner)."""
    array = volume.array.astype(np.uint8) if volume.array.dtype == np.bool_ else volume.array
    image = nibabel.Nifti1Image(array, None, dtype=array.dtype)
    image.set_sform(volume.affine, code=1)
    # A quaternion cannot represent shear: nibabel stores the nearest rotation, and code 0 marks it as unused.
    image.set_qform(volume.affine, code=1, strip_shears=True)
    if furthest_corner_mm(image.get_qform(), volume.affine, volume.shape) > 0.1 * min(volume.spacing_mm):
        image.set_qform(volume.affine, code=0)
    image.header.set_xyzt_units("mm")
    content: bytes = image.to_bytes()
    return igzip.compress(content, GZIP_LEVEL, mtime=0) if compress else content


def _read_checked(source: Source, start: bytes, limit_bytes: int) -> tuple[VolumeHeader, Scaling | None]:
    """Read and check a header, in the same order whether or not voxels are read after it; advance to the voxels."""
    header = _read_header(source, start)
    shape, dtype = _shape(header, source.where), _dtype(header, source.where)
    source.check_size(shape, dtype, limit_bytes)
    affine = check_affine(header_affine(header, source.where), source.where)
    scaling = _scaling(header, source.where)
    slope = scaling.slope if scaling is not None else 1.0
    return VolumeHeader(shape, dtype, affine, scaling is not None, slope), scaling


def _read_header(source: Source, start: bytes) -> Nifti1Header:
    kind, magic, order = _MAGICS[start]
    rest = source.read(kind.sizeof_hdr - 4)
    if len(rest) < kind.sizeof_hdr - 4:
        raise VolumeError("file is truncated", where=source.where, found="an incomplete header", do=DO_EXPORT)
    header = kind(start + rest, endianness=order, check=False)
    found = rest[:8] if kind is Nifti2Header else rest[340:]
    if found[:4] in (b"ni1\0", b"ni2\0"):
        raise VolumeError(
            "file is the header of a NIfTI pair",
            where=source.where,
            expected="header and voxels in one .nii file",
            found=".hdr and .img",
            do="save the volume again as .nii or .nii.gz",
        )
    if found != magic:
        raise VolumeError(
            "magic bytes are not single-file NIfTI",
            where=source.where,
            expected=magic,
            found=found,
            do=DO_EXPORT,
        )
    # Four bytes after the header flag extensions; vox_offset, a float in NIfTI-1, points past these.
    offset, least = float(header["vox_offset"]), kind.sizeof_hdr + 4
    if not (least <= offset <= _MOST_OFFSET and offset.is_integer()):
        raise VolumeError(
            "voxel offset is out of range",
            where=source.where,
            expected=f"an integer vox_offset from {least} to {_MOST_OFFSET}",
            found=offset,
            do=DO_EXPORT,
        )
    source.read(int(offset) - kind.sizeof_hdr)
    return header


def _shape(header: Nifti1Header, where: object) -> tuple[int, int, int]:
    count = int(header["dim"][0])
    sizes = [int(n) for n in header["dim"][1 : 1 + max(0, count)]]
    if not 3 <= count <= 7 or any(n < 1 for n in sizes) or any(n != 1 for n in sizes[3:]):
        raise VolumeError(
            "file is not a single three-dimensional volume",
            where=where,
            expected="dim[0] = 3, then three sizes of at least 1",
            found=f"dim = {[int(n) for n in header['dim']]}",
            do="save a single volume of the series or vector image",
        )
    return sizes[0], sizes[1], sizes[2]


def _dtype(header: Nifti1Header, where: object) -> np.dtype[Any]:
    code, bits = int(header["datatype"]), int(header["bitpix"])
    try:
        dtype: np.dtype[Any] = header.get_data_dtype()
    except (HeaderDataError, KeyError) as error:
        raise VolumeError("data type is unknown", where=where, found=f"datatype {code}", do=DO_EXPORT) from error
    if dtype.kind not in "iuf" or dtype.itemsize > 8:
        raise VolumeError(
            "data type is not supported",
            where=where,
            expected="integers or floats of at most 64 bits",
            found=f"datatype {code} ({dtype})",
            do="save the volume with one number per voxel, as int16, uint8 or float32",
        )
    if bits not in (0, 8 * dtype.itemsize):
        raise VolumeError(
            "datatype and bitpix contradict each other",
            where=where,
            expected=f"bitpix {8 * dtype.itemsize} for datatype {code} ({dtype.name})",
            found=bits,
            do=DO_EXPORT,
        )
    return dtype


def _scaling(header: Nifti1Header, where: object) -> Scaling | None:
    """The header's scaling; None for a slope of 0, for the identity, and for nibabel's pair of NaN."""
    slope, intercept = float(header["scl_slope"]), float(header["scl_inter"])
    if slope == 0.0 or (slope, intercept) == (1.0, 0.0) or (np.isnan(slope) and np.isnan(intercept)):
        return None
    if not np.isfinite([slope, intercept]).all():
        raise VolumeError(
            "intensity scaling is not finite",
            where=where,
            found=f"scl_slope {slope}, scl_inter {intercept}",
            do=DO_EXPORT,
        )
    return Scaling(slope, intercept)


def _scaled(array: NDArray[Any], scaling: Scaling, where: object) -> NDArray[Any]:
    with np.errstate(over="ignore", invalid="ignore"):
        # In place, because a scan can exceed a hundred megabytes.
        scaled = array.astype(np.float32)
        scaled *= np.float32(scaling.slope)
        scaled += np.float32(scaling.intercept)
    return to_finite(scaled, where)
