"""Reading and writing volume files; the format is detected from the first bytes, not from the file name."""

from __future__ import annotations

import io
import os
import zlib
from pathlib import Path
from typing import BinaryIO

from gtvray.errors import InputError, VolumeError
from gtvray.geometry import Volume
from gtvray.io.atomic import atomic_path
from gtvray.io.content import HEAD_BYTES, identify
from gtvray.io.headers import VolumeHeader
from gtvray.io.nifti import Scaling, encode_nifti, is_nifti, read_nifti, read_nifti_header, read_scaled_nifti
from gtvray.io.nrrd import encode_nrrd, is_nrrd, read_nrrd, read_nrrd_header
from gtvray.io.stream import GZIP_MAGIC, MAX_VOLUME_BYTES, MOST_EXPANSION, Source, open_regular_file

# zlib's code of the gzip format, and how much is decompressed to find the end of a header.
_GZIP_FORMAT, _MOST_BEGINNING_BYTES = 31, 1 << 20


def read_volume(path: str | os.PathLike[str]) -> Volume:
    """Read a NIfTI (`.nii`, `.nii.gz`) or NRRD (`.nrrd`, `.seg.nrrd`, `.nhdr`) file and apply NIfTI's scaling.

    Returns:
        the volume: integers as stored if no scaling applies, otherwise float32.

    Raises:
        NotFoundError: no such file.
        VolumeError: unknown format, truncated or too long, not three-dimensional, or with NaN or infinite values.
        GeometryError: the affine is missing, implausible or contradictory.
        TooLargeError: over 4 GiB.
    """
    return read_scaled_volume(path)[0]


def read_scaled_volume(path: str | os.PathLike[str]) -> tuple[Volume, Scaling | None]:
    """Read as `read_volume`; also return the applied scaling of a NIfTI header.

    Raises:
        as `read_volume`.
    """
    source = Path(path)
    with open_regular_file(source) as file:
        head = file.read(HEAD_BYTES)
        return _read(Source(file, source), head, MAX_VOLUME_BYTES, _data_folder(source))


def read_volume_header(path: str | os.PathLike[str]) -> VolumeHeader:
    """Read the header of a file; no voxel is read or decompressed.

    Raises:
        as `read_volume`, as far as the header shows it.
    """
    source = Path(path)
    with open_regular_file(source) as file:
        return _read_header(file, source, MAX_VOLUME_BYTES, _data_folder(source))


def decode_volume(content: bytes, where: object = "upload", limit_bytes: int = MAX_VOLUME_BYTES) -> Volume:
    """Decode a volume from bytes in memory, as `read_volume` does.

    Args:
        content: bytes of the file.
        where: source of the bytes, for errors.
        limit_bytes: maximum decompressed size.

    Raises:
        as `read_volume`; also VolumeError for an NRRD header with a detached data file.
    """
    return decode_scaled_volume(content, where, limit_bytes)[0]


def decode_scaled_volume(
    content: bytes, where: object = "upload", limit_bytes: int = MAX_VOLUME_BYTES
) -> tuple[Volume, Scaling | None]:
    """Decode as `decode_volume`; also return the applied scaling of a NIfTI header.

    Raises:
        as `decode_volume`.
    """
    return _read(Source(io.BytesIO(content), where), content[:HEAD_BYTES], limit_bytes, None)


def read_open_volume(file: BinaryIO, where: object, limit_bytes: int = MAX_VOLUME_BYTES) -> Volume:
    """Read a volume from a seekable file that is already open, as `decode_volume` does from memory.

    Raises:
        as `decode_volume`.
    """
    head = _head(file)
    return _read(Source(file, where), head, limit_bytes, None)[0]


def read_open_header(file: BinaryIO, where: object, limit_bytes: int = MAX_VOLUME_BYTES) -> VolumeHeader:
    """Read the header of a volume from a seekable file that is already open; no voxel is read or decompressed.

    Raises:
        as `decode_volume`, as far as the header and the size of the file show it.
    """
    return _read_header(file, where, limit_bytes, None)


def read_partial_header(beginning: bytes, file_bytes: int, where: object, limit_bytes: int) -> VolumeHeader | None:
    """Read the header of a volume of which only the beginning has arrived.

    Args:
        beginning: first bytes of the file.
        file_bytes: size of the complete file, or an upper bound of it.
        where: source of the bytes, for errors.
        limit_bytes: maximum decompressed size of the voxels.

    Returns:
        the header; None if these bytes do not contain all of it, or are damaged.

    Raises:
        as `read_open_header` for the complete file, which is refused too whatever its further bytes are.
    """
    if beginning.startswith(GZIP_MAGIC):
        try:
            beginning = zlib.decompressobj(_GZIP_FORMAT).decompress(beginning, _MOST_BEGINNING_BYTES)
        except zlib.error:
            return None
        file_bytes *= MOST_EXPANSION
    file = _Beginning(beginning)
    source = Source(file, where, sniff=False, length=file_bytes)
    try:
        start = source.read(4)
        if is_nifti(start):
            return read_nifti_header(source, start, limit_bytes)
        if is_nrrd(start):
            return read_nrrd_header(source, start, limit_bytes, None)
    except InputError:
        if not file.exceeded:
            raise
    return None


def decode_nifti(content: bytes, where: object = "upload", limit_bytes: int = MAX_VOLUME_BYTES) -> Volume:
    """Decode as `decode_volume`, but only NIfTI.

    Raises:
        as `read_volume`.
    """
    source = Source(io.BytesIO(content), where)
    start = source.read(4)
    if not is_nifti(start):
        raise _unknown("not a NIfTI file", "a NIfTI-1 or NIfTI-2 header", content[:HEAD_BYTES], where)
    return read_nifti(source, start, limit_bytes)


def write_volume(path: str | os.PathLike[str], volume: Volume) -> None:
    """Write a `.nii`, `.nii.gz` or (gzip-encoded) `.nrrd` file atomically; the dtype is kept, bool becomes uint8.

    Raises:
        InputError: the file extension is not one of these.
        ResourceError: the disk is full.
    """
    name = Path(path).name.lower()
    if name.endswith((".nii", ".nii.gz")):
        content = encode_nifti(volume, compress=name.endswith(".gz"))
    elif name.endswith(".nrrd"):
        content = encode_nrrd(volume)
    else:
        raise InputError("unsupported file extension", where=path, expected=".nii, .nii.gz or .nrrd")
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


class _Beginning(io.BytesIO):
    """The first bytes of a file.

    Attributes:
        exceeded: whether a caller tried to read more than these.
    """

    exceeded = False

    def read(self, count: int | None = -1, /) -> bytes:
        content = super().read(count)
        self.exceeded = self.exceeded or count is None or not 0 <= count <= len(content)
        return content

    def readline(self, count: int | None = -1, /) -> bytes:
        line = super().readline(count)
        self.exceeded = self.exceeded or (len(line) != count and not line.endswith(b"\n"))
        return line


def _head(file: BinaryIO) -> bytes:
    file.seek(0)
    return file.read(HEAD_BYTES)


def _read_header(file: BinaryIO, where: object, limit_bytes: int, folder: Path | None) -> VolumeHeader:
    head = _head(file)
    source = Source(file, where)
    start = source.read(4)
    if is_nifti(start):
        return read_nifti_header(source, start, limit_bytes)
    if is_nrrd(start):
        return read_nrrd_header(source, start, limit_bytes, folder)
    raise _unknown("not a NIfTI or NRRD file", "a NIfTI-1, NIfTI-2 or NRRD header", head, where)


def _read(source: Source, head: bytes, limit_bytes: int, folder: Path | None) -> tuple[Volume, Scaling | None]:
    start = source.read(4)
    if is_nifti(start):
        return read_scaled_nifti(source, start, limit_bytes)
    if is_nrrd(start):
        return read_nrrd(source, start, limit_bytes, folder), None
    raise _unknown("not a NIfTI or NRRD file", "a NIfTI-1, NIfTI-2 or NRRD header", head, source.where)


def _data_folder(source: Path) -> Path | None:
    """Folder of a detached data file: a digest of a file does not cover it, so only .nhdr may have one."""
    return source.parent if source.suffix.lower() == ".nhdr" else None


def _unknown(what: str, expected: str, head: bytes, where: object) -> VolumeError:
    content = identify(head)
    return VolumeError(what, where=where, expected=expected, found=content.name, do=content.hint or None)
