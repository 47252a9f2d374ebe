"""Bytes of a volume file, decompressed if gzipped, with their number checked against the header.

The check precedes allocation: a plain file holds as many bytes as its size, a gzipped one at most the maximum expansion
of deflate times its size.
"""

from __future__ import annotations

import io
import math
import os
import stat
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from isal import igzip, igzip_lib
from numpy.typing import NDArray

from gtvray.errors import NotFoundError, TooLargeError, VolumeError

# A whole-body CT of 1024 x 1024 x 2048 voxels in int16 is 4 GiB; more is a broken header or an attack.
MAX_VOLUME_BYTES = 4 << 30
GZIP_LEVEL = 1
GZIP_MAGIC = b"\x1f\x8b"
DO_EXPORT = "export the volume again from its source"

# Maximum expansion of deflate: its longest match, 258 bytes, takes two bits.
MOST_EXPANSION = 1032
_PIECE_BYTES = 1 << 20
# isal's stub declares its error class as an instance.
_DAMAGED: tuple[type[BaseException], ...] = (
    EOFError,
    OSError,
    ValueError,
    # isal's, for a gzip header of more than 512 KiB.
    OverflowError,
    zlib.error,
    igzip_lib.IsalError,  # type: ignore[assignment]
)


class Source:
    """Sequential reader of the bytes of a volume, from a file or memory.

    Args:
        file: seekable, at its beginning.
        where: source of the bytes, for errors.
        sniff: decompress the file if it starts with the magic bytes of gzip.
        length: size of the file if `file` has only its beginning; None for a complete file.
    """

    def __init__(self, file: BinaryIO, where: object, *, sniff: bool = True, length: int | None = None) -> None:
        self.where = where
        self._file: Any = file
        self._gzipped = False
        with self._named():
            self._length = file.seek(0, io.SEEK_END)
            file.seek(0)
            magic = file.read(2) if sniff else b""
            file.seek(0)
        if length is not None:
            self._length = length
        if magic == GZIP_MAGIC:
            self.inflate()

    def inflate(self) -> None:
        """Decompress the remaining bytes as a gzip stream.

        Raises:
            VolumeError: they are already being decompressed.
        """
        if self._gzipped:
            raise VolumeError("file is compressed twice", where=self.where, do="compress the volume once")
        self._gzipped = True
        self._file = igzip.open(self._file, "rb")

    def read(self, count: int) -> bytes:
        """Read the next `count` bytes of a header, fewer at the end.

        Raises:
            VolumeError: the compressed stream is damaged.
        """
        with self._named():
            content: bytes = self._file.read(count)
        return content

    def read_line(self, most_bytes: int) -> bytes:
        """Read the next line with its terminator, at most `most_bytes`; empty at the end.

        Raises:
            VolumeError: the compressed stream is damaged.
        """
        with self._named():
            content: bytes = self._file.readline(most_bytes)
        return content

    def check_size(self, shape: tuple[int, int, int], dtype: np.dtype[Any], limit_bytes: int) -> int:
        """Check whether the rest of the file can hold an array, without reading it, and return the array's bytes.

        Raises:
            TooLargeError: more than `limit_bytes`.
            VolumeError: the file is too short.
        """
        expected = math.prod(shape) * dtype.itemsize
        if expected > limit_bytes:
            raise TooLargeError(
                "volume is too large", where=self.where, expected=f"<= {limit_bytes} bytes", found=expected
            )
        most = self._length * MOST_EXPANSION if self._gzipped else self._length - self._file.tell()
        if expected > most:
            raise self._truncated(expected, f"at most {most}")
        return expected

    def read_voxels(self, shape: tuple[int, int, int], dtype: np.dtype[Any], limit_bytes: int) -> NDArray[Any]:
        """Read the remaining bytes as an array (i, j, k), the first axis varying fastest.

        Reads to the end of the file, so that the checksum of a compressed stream is verified.

        Raises:
            TooLargeError: more than `limit_bytes`.
            VolumeError: fewer or more bytes than `shape` needs, or a damaged stream.
        """
        expected = self.check_size(shape, dtype, limit_bytes)
        content = np.empty(expected, np.uint8)
        view, filled = content.data, 0
        with self._named():
            # In pieces, because a gzip reader allocates a copy of each.
            while filled < expected and (count := self._file.readinto(view[filled : filled + _PIECE_BYTES])):
                filled += count
            more = self._file.read(1) if filled == expected else b""
        if filled < expected:
            raise self._truncated(expected, filled)
        if more:
            raise VolumeError(
                "file is longer than its header specifies",
                where=self.where,
                expected=f"{expected} bytes of voxels for {' x '.join(map(str, shape))} of {dtype.name}",
                found="more",
                do=DO_EXPORT,
            )
        return content.view(dtype).reshape(shape, order="F")

    def _truncated(self, expected: int, found: object) -> VolumeError:
        return VolumeError(
            "file is truncated", where=self.where, expected=f"{expected} bytes of voxels", found=found, do=DO_EXPORT
        )

    @contextmanager
    def _named(self) -> Iterator[None]:
        """Convert errors of reading to a VolumeError that names the file."""
        try:
            yield
        except _DAMAGED as error:
            what = "gzip stream is damaged" if self._gzipped else "file cannot be read"
            raise VolumeError(what, where=self.where, found=error, do=DO_EXPORT) from error


@contextmanager
def open_regular_file(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Open a regular file for reading; a pipe or device is refused without blocking.

    Raises:
        NotFoundError: no such file.
        VolumeError: the path is not a readable regular file.
    """
    source = Path(path)
    try:
        mode = source.stat().st_mode
        if not stat.S_ISREG(mode):
            kind = "a folder" if stat.S_ISDIR(mode) else "a pipe, socket or device"
            raise VolumeError("not a regular file", where=source, expected="a volume file", found=kind)
        file = source.open("rb")
    except (FileNotFoundError, NotADirectoryError) as error:
        raise NotFoundError("no such file", where=source, expected="a .nii, .nii.gz or .nrrd file") from error
    except (OSError, ValueError) as error:
        found = error.strerror if isinstance(error, OSError) else error
        raise VolumeError("file cannot be opened", where=source, found=found) from error
    with file:
        yield file


def to_finite(array: NDArray[Any], where: object) -> NDArray[Any]:
    """Convert integers to native byte order and floats to float32.

    Raises:
        VolumeError: a value is NaN, or infinite in float32.
    """
    if array.dtype.kind != "f":
        return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))
    # Values out of the range of float32 become infinite and are refused below.
    with np.errstate(over="ignore", invalid="ignore"):
        array = array.astype(np.float32, copy=False)
    bad = int(array.size - np.count_nonzero(np.isfinite(array)))
    if bad:
        raise VolumeError("voxels are NaN or infinite", where=where, found=f"{bad} of {array.size}", do=DO_EXPORT)
    return array
