"""NIfTI-1 and NIfTI-2 volumes: the size is held against the header before anything is allocated.

Standard: https://nifti.nimh.nih.gov/nifti-1/documentation/nifti1fields
"""

from __future__ import annotations

import io
import math
import os
import struct
import zlib
from pathlib import Path
from typing import Any, BinaryIO

import nibabel
import numpy as np
from isal import igzip, igzip_lib
from nibabel.nifti1 import Nifti1Header
from nibabel.nifti2 import Nifti2Header
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

from gtvray.errors import GeometryError, NotFoundError, TooLargeError, VolumeError
from gtvray.geometry import Volume, check_affine
from gtvray.io.atomic import atomic_path

# A whole-body CT of 1024 x 1024 x 2048 voxels in int16 is 4 GiB; more is a broken header or an attack.
MAX_VOLUME_BYTES = 4 << 30
_SIZES = {348: Nifti1Header, 540: Nifti2Header}
_GZIP_LEVEL = 1
# isal's stub takes its error class for an instance.
_DAMAGED: tuple[type[BaseException], ...] = (EOFError, OSError, zlib.error, igzip_lib.IsalError)  # type: ignore[assignment]
_DO = "export the volume again from where it came from"


def read_volume(path: str | os.PathLike[str]) -> Volume:
    """Read a `.nii` or `.nii.gz` file; scl_slope and scl_inter are applied.

    Returns:
        the volume: integers as stored where no scaling applies, else float32.

    Raises:
        NotFoundError: no such file.
        VolumeError: not NIfTI, truncated, of another size than its header says, not three-dimensional, NaN or Inf.
        GeometryError: its header does not say where its voxels are.
        TooLargeError: over 4 GiB.
    """
    source = Path(path)
    if not source.is_file():
        raise NotFoundError("no such file", where=source, expected="a .nii or .nii.gz file")
    with source.open("rb") as file:
        return _read(file, source)


def decode_nifti(content: bytes, where: object = "upload", limit_bytes: int = MAX_VOLUME_BYTES) -> Volume:
    """The same from bytes in memory; `limit_bytes` caps the inflated size.

    Raises:
        as `read_volume`.
    """
    return _read(io.BytesIO(content), where, limit_bytes)


def write_volume(path: str | os.PathLike[str], volume: Volume) -> None:
    """Write `.nii` or, by the name, `.nii.gz`; atomic; the array's dtype is kept (bool as uint8)."""
    content = encode_nifti(volume, compress=str(path).endswith(".gz"))
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def encode_nifti(volume: Volume, *, compress: bool) -> bytes:
    """The volume as a NIfTI-1 file; sform and qform both say where it is (code 1, scanner)."""
    array = volume.array.astype(np.uint8) if volume.array.dtype == np.bool_ else volume.array
    image = nibabel.Nifti1Image(array, None)
    image.set_sform(volume.affine, code=1)
    # A quaternion cannot hold shear: nibabel stores the nearest rotation, and code 0 says not to use it.
    image.set_qform(volume.affine, code=1, strip_shears=True)
    if _furthest_corner_mm(image.get_qform(), volume.affine, volume.shape) > 0.1 * min(volume.spacing_mm):
        image.set_qform(volume.affine, code=0)
    image.header.set_xyzt_units("mm")
    content: bytes = image.to_bytes()
    return igzip.compress(content, _GZIP_LEVEL) if compress else content


def _read(file: BinaryIO, where: object, limit_bytes: int = MAX_VOLUME_BYTES) -> Volume:
    gzipped = file.read(2) == b"\x1f\x8b"
    file.seek(0)
    stream: Any = igzip.open(file, "rb") if gzipped else file
    try:
        header = _read_header(stream, where)
        shape = _shape(header, where)
        expected = math.prod(shape) * header.get_data_dtype().itemsize
        if expected > limit_bytes:
            raise TooLargeError("volume is too large", where=where, expected=f"<= {limit_bytes} bytes", found=expected)
        content = stream.read(expected)
        # Reading on to the end lets gzip check its own checksum; a second volume's worth is not ours to inflate.
        trailing = len(stream.read(1 << 20))
    except _DAMAGED as error:
        raise VolumeError("gzip stream is damaged", where=where, found=error, do=_DO) from error
    if len(content) < expected:
        raise VolumeError(
            "file is truncated", where=where, expected=f"{expected} bytes of voxels", found=len(content), do=_DO
        )
    if trailing >= 1 << 20:
        raise VolumeError("file is longer than its header says", where=where, do=_DO)
    array = np.frombuffer(content, header.get_data_dtype()).reshape(shape, order="F")
    return Volume(_scaled(array, header, where), check_affine(_affine(header, where), where))


def _read_header(stream: Any, where: object) -> Nifti1Header:
    start = stream.read(4)
    sizes = {struct.unpack(order + "i", start)[0] for order in "<>"} if len(start) == 4 else set()
    kind = next((_SIZES[size] for size in sizes if size in _SIZES), None)
    if kind is None:
        raise VolumeError("not a NIfTI file", where=where, expected="a NIfTI-1 or NIfTI-2 header", found=start, do=_DO)
    rest = stream.read(kind.sizeof_hdr - 4)
    if len(rest) < kind.sizeof_hdr - 4:
        raise VolumeError("file is truncated", where=where, found="half a header", do=_DO)
    header = kind(start + rest, check=False)
    if bytes(header["magic"])[:3] not in (b"n+1", b"n+2"):
        raise VolumeError(
            "magic bytes are not those of single-file NIfTI",
            where=where,
            expected="n+1 or n+2",
            found=bytes(header["magic"]),
            do=_DO,
        )
    offset = float(header["vox_offset"])
    if not kind.sizeof_hdr <= offset <= 1 << 24:
        raise VolumeError("voxel offset is absurd", where=where, found=offset, do=_DO)
    stream.read(int(offset) - kind.sizeof_hdr)
    return header


def _shape(header: Nifti1Header, where: object) -> tuple[int, int, int]:
    count = int(header["dim"][0])
    sizes = [int(n) for n in header["dim"][1 : 1 + max(0, count)]]
    if not 3 <= count <= 7 or any(n < 1 for n in sizes) or any(n != 1 for n in sizes[3:]):
        raise VolumeError("not one three-dimensional volume", where=where, found=f"dim = {sizes}", do=_DO)
    try:
        dtype = header.get_data_dtype()
    except (HeaderDataError, KeyError) as error:
        raise VolumeError("unknown data type", where=where, found=int(header["datatype"]), do=_DO) from error
    if dtype.kind not in "iuf":
        raise VolumeError("voxels are not single numbers", where=where, found=dtype, do=_DO)
    return sizes[0], sizes[1], sizes[2]


def _scaled(array: NDArray[Any], header: Nifti1Header, where: object) -> NDArray[Any]:
    slope, intercept = float(header["scl_slope"]), float(header["scl_inter"])
    if slope not in (0.0, 1.0) or (slope == 1.0 and intercept != 0.0):
        if not np.isfinite([slope, intercept]).all():
            raise VolumeError("intensity scaling is not finite", where=where, found=f"{slope}, {intercept}", do=_DO)
        with np.errstate(over="ignore", invalid="ignore"):
            array = array.astype(np.float32) * np.float32(slope) + np.float32(intercept)
    elif not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    if array.dtype.kind == "f":
        # What float32 cannot hold becomes infinite and is refused as such.
        with np.errstate(over="ignore"):
            array = array.astype(np.float32)
        bad = int(array.size - np.count_nonzero(np.isfinite(array)))
        if bad:
            raise VolumeError("voxels are NaN or infinite", where=where, found=f"{bad} of {array.size}", do=_DO)
    return array


@np.errstate(invalid="ignore", over="ignore")  # what is not finite is refused, not warned about
def _affine(header: Nifti1Header, where: object) -> NDArray[np.float64]:
    """The sform if it has a code, else the qform; the header's own spacing must agree with what is used."""
    sform_code, qform_code = int(header["sform_code"]), int(header["qform_code"])
    if sform_code <= 0 and qform_code <= 0:
        raise GeometryError(
            "the header does not say where the voxels are",
            where=where,
            expected="sform_code or qform_code > 0",
            found="both 0",
            do=_DO,
        )
    pixdim = np.abs(np.asarray(header["pixdim"][1:4], dtype=np.float64))
    if qform_code > 0 and (not np.isfinite(pixdim).all() or (pixdim <= 0).any()):
        raise GeometryError("voxel spacing is zero or not finite", where=where, found=f"pixdim {pixdim}", do=_DO)
    qform = _qform(header, where) if qform_code > 0 else None
    sform = header.get_sform() if sform_code > 0 else None
    if sform is not None and qform is not None and qform_code == sform_code:
        apart_mm = _furthest_corner_mm(sform, qform, header.get_data_shape())
        if not apart_mm <= 1.0:
            raise GeometryError(
                "qform and sform place the voxels differently",
                where=where,
                expected="the same place from both, as their codes are the same",
                found=f"{apart_mm:.1f} mm apart",
                do="find out which is right and write both alike",
            )
    return np.asarray(sform if sform is not None else qform, dtype=np.float64)


def _qform(header: Nifti1Header, where: object) -> NDArray[Any]:
    """The quaternion's affine; as the standard has it, a handedness (qfac) of 0 is 1, and spacing is positive."""
    header["pixdim"][0] = -1 if header["pixdim"][0] < 0 else 1
    header["pixdim"][1:4] = np.abs(header["pixdim"][1:4])
    try:
        return np.asarray(header.get_qform())
    except ValueError as error:
        raise GeometryError("the header's quaternion is no rotation", where=where, found=error, do=_DO) from error


def _furthest_corner_mm(one: NDArray[Any], other: NDArray[Any], shape: tuple[int, ...]) -> float:
    corners = np.array(np.meshgrid(*[(0, n - 1) for n in shape[:3]])).reshape(3, -1)
    apart = (one - other) @ np.vstack([corners, np.ones(corners.shape[1])])
    return float(np.linalg.norm(apart[:3], axis=0).max())
