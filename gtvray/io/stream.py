"""The bytes of a volume file, inflated where need be: exactly as many as its header promises, or an error.

Nothing is allocated for a promise the file cannot keep: a plain file holds what its size says, and a gzipped one at
most so many times that as deflate can ever give.
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
DO_EXPORT = "export the volume again from where it came from"

# How many bytes one byte of deflate can become: its longest match, 258 bytes, in two bits.
_MOST_GROWTH = 1032
_PIECE_BYTES = 1 << 20
# isal's stub takes its error class for an instance.
_DAMAGED: tuple[type[BaseException], ...] = (
    EOFError,
    OSError,
    ValueError,
    zlib.error,
    igzip_lib.IsalError,  # type: ignore[assignment]
)


class Source:
    """A volume's bytes from a file or from memory, read once from front to back.

    Args:
        file: seekable, at its beginning.
        where: what to name in an error.
        sniff: inflate it if it begins as a gzip stream does.
    """

    def __init__(self, file: BinaryIO, where: object, *, sniff: bool = True) -> None:
        self.where = where
        self._file: Any = file
        self._gzipped = False
        with self._named():
            self._length = file.seek(0, io.SEEK_END)
            file.seek(0)
            magic = file.read(2) if sniff else b""
            file.seek(0)
        if magic == GZIP_MAGIC:
            self.inflate()

    def inflate(self) -> None:
        """Take the rest for a gzip stream.

        Raises:
            VolumeError: it lies inside one already.
        """
        if self._gzipped:
            raise VolumeError("file is compressed twice", where=self.where, do="compress it once")
        self._gzipped = True
        self._file = igzip.open(self._file, "rb")

    def read(self, count: int) -> bytes:
        """The next `count` bytes, fewer at the end; meant for headers.

        Raises:
            VolumeError: the compressed stream is damaged.
        """
        with self._named():
            content: bytes = self._file.read(count)
        return content

    def line(self, most_bytes: int) -> bytes:
        """The next line with its end, cut at `most_bytes`; empty at the end.

        Raises:
            VolumeError: the compressed stream is damaged.
        """
        with self._named():
            content: bytes = self._file.readline(most_bytes)
        return content

    def voxels(self, shape: tuple[int, int, int], dtype: np.dtype[Any], limit_bytes: int) -> NDArray[Any]:
        """The rest, which must be as many voxels as `shape` says, the first axis running fastest.

        Reads to the end, so that a compressed stream's own checksum is held against its bytes.

        Raises:
            TooLargeError: more than `limit_bytes`.
            VolumeError: fewer or more bytes than that, or a damaged stream.
        """
        expected = math.prod(shape) * dtype.itemsize
        if expected > limit_bytes:
            raise TooLargeError(
                "volume is too large", where=self.where, expected=f"<= {limit_bytes} bytes", found=expected
            )
        most = self._length * _MOST_GROWTH if self._gzipped else self._length - self._file.tell()
        if expected > most:
            raise self._truncated(expected, f"at most {most}")
        content = np.empty(expected, np.uint8)
        view, filled = content.data, 0
        with self._named():
            # In pieces, since a gzip reader fills each by way of a copy.
            while filled < expected and (count := self._file.readinto(view[filled : filled + _PIECE_BYTES])):
                filled += count
            more = self._file.read(1) if filled == expected else b""
        if filled < expected:
            raise self._truncated(expected, filled)
        if more:
            raise VolumeError(
                "file is longer than its header says",
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
        """What reading can raise, as an error that names the file."""
        try:
            yield
        except _DAMAGED as error:
            what = "gzip stream is damaged" if self._gzipped else "file cannot be read"
            raise VolumeError(what, where=self.where, found=error, do=DO_EXPORT) from error


@contextmanager
def opened(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """An ordinary file, open for reading; a pipe or a device is refused and not waited for.

    Raises:
        NotFoundError: no such file.
        VolumeError: there is something, but no file that can be read.
    """
    source = Path(path)
    try:
        mode = source.stat().st_mode
        if not stat.S_ISREG(mode):
            kind = "a folder" if stat.S_ISDIR(mode) else "a pipe, socket or device"
            raise VolumeError("not a file", where=source, expected="a volume file", found=kind)
        file = source.open("rb")
    except (FileNotFoundError, NotADirectoryError) as error:
        raise NotFoundError("no such file", where=source, expected="a .nii, .nii.gz or .nrrd file") from error
    except (OSError, ValueError) as error:
        found = error.strerror if isinstance(error, OSError) else error
        raise VolumeError("file cannot be opened", where=source, found=found) from error
    with file:
        yield file


def finite(array: NDArray[Any], where: object) -> NDArray[Any]:
    """Integers in the machine's byte order; floats as float32, none of them NaN or infinite.

    Raises:
        VolumeError: some are, or become so in float32.
    """
    if array.dtype.kind != "f":
        return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))
    # What float32 cannot hold becomes infinite and is refused as such.
    with np.errstate(over="ignore", invalid="ignore"):
        array = array.astype(np.float32, copy=False)
    bad = int(array.size - np.count_nonzero(np.isfinite(array)))
    if bad:
        raise VolumeError("voxels are NaN or infinite", where=where, found=f"{bad} of {array.size}", do=DO_EXPORT)
    return array
