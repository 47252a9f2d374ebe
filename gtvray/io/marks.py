"""Marks that identify unmodified gtvray outputs: a SHA-256 of the content, stored inside the file.

A marked file contains, near its beginning, `gtvray sha256:` and 64 hexadecimal digits: the digest of the content
(decompressed if gzipped) with these digits replaced by zeros. Any later change of a voxel or of the header invalidates
the digest, so a corrected mask is no longer recognised as an output. The mark needs no second file and survives a move.

It is stored in `descrip` of a NIfTI header, in a comment of an NRRD header, under the first key of a JSON object, and
in a comment on the first line of HTML, Markdown and YAML. It does not protect against forgery.
"""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from isal import igzip, igzip_lib

from gtvray.errors import InputError
from gtvray.geometry import Volume
from gtvray.io.atomic import sha256_of
from gtvray.io.jsonfile import read_json
from gtvray.io.nifti import encode_nifti
from gtvray.io.nrrd import encode_nrrd
from gtvray.io.stream import GZIP_LEVEL, GZIP_MAGIC

MARK_KEY = "gtvray_mark"
FOLDER_RECORD = "manifest.json"
_LABEL = b"gtvray sha256:"
_ZEROS = b"0" * 64
_BLANK = _LABEL + _ZEROS
# `descrip` of a NIfTI-1 header: 80 bytes, of which the mark takes 78.
_DESCRIP_OFFSET = 148
_HEAD_BYTES = 4096
_PIECE_BYTES = 1 << 20
# isal's stub declares its error class as an instance.
_UNREADABLE: tuple[type[BaseException], ...] = (
    OSError,
    EOFError,
    ValueError,
    zlib.error,
    igzip_lib.IsalError,  # type: ignore[assignment]
)


def marked_volume(name: str, volume: Volume) -> bytes:
    """Encode a volume with its mark.

    Args:
        name: file name; its extension, case-insensitive, selects the format.
        volume: volume to encode; bool is stored as uint8.

    Raises:
        InputError: the extension is not .nii, .nii.gz or .nrrd.
    """
    lower = name.lower()
    if lower.endswith(".nrrd"):
        magic, _, rest = encode_nrrd(volume).partition(b"\n")
        return _sealed(b"\n".join([magic, b"# " + _BLANK, rest]))
    if not lower.endswith((".nii", ".nii.gz")):
        raise InputError("unsupported file extension", where=name, expected=".nii, .nii.gz or .nrrd")
    content = bytearray(encode_nifti(volume, compress=False))
    content[_DESCRIP_OFFSET : _DESCRIP_OFFSET + len(_BLANK)] = _BLANK
    sealed = _sealed(bytes(content))
    packed: bytes = igzip.compress(sealed, GZIP_LEVEL, mtime=0) if lower.endswith(".gz") else sealed
    return packed


def marked_text(name: str, text: str) -> bytes:
    """Encode text with its mark in a leading comment: an HTML comment for .html and .md, otherwise a YAML comment."""
    comment = ("<!-- {} -->" if name.lower().endswith((".html", ".md")) else "# {}").format(_BLANK.decode())
    return _sealed(f"{comment}\n{text}".encode())


def marked_json(value: Mapping[str, Any]) -> bytes:
    """Encode an object as indented JSON with its mark under the first key; NaN and infinity are refused."""
    text = json.dumps({MARK_KEY: _BLANK.decode(), **value}, indent=2, allow_nan=False)
    return _sealed(f"{text}\n".encode())


def is_own_file(path: str | os.PathLike[str]) -> bool:
    """Whether a file is an unmodified gtvray output; False for a symbolic link."""
    source = Path(path)
    if source.is_symlink() or not source.is_file():
        return False
    try:
        with source.open("rb") as file, _inflated(file) as content:
            return _is_intact(content)
    except _UNREADABLE:
        return False


def has_mark(path: str | os.PathLike[str]) -> bool:
    """Whether a file carries a mark, valid or not: it was written by gtvray and may have been modified."""
    try:
        with Path(path).open("rb") as file, _inflated(file) as content:
            return _LABEL in content.read(_HEAD_BYTES)
    except _UNREADABLE:
        return False


def mark_folder(folder: Path) -> None:
    """Write the manifest that `is_own_folder` checks: the SHA-256 of every file in the folder."""
    files = {name: sha256_of(folder / name) for name in sorted(_files_below(folder) - {FOLDER_RECORD})}
    (folder / FOLDER_RECORD).write_bytes(marked_json({"files": files}))


def is_own_folder(path: Path) -> bool:
    """Whether a folder is an unmodified gtvray output: no file changed, missing or added."""
    record = path / FOLDER_RECORD
    if path.is_symlink() or not is_own_file(record):
        return False
    try:
        files: dict[str, str] = read_json(record)["files"]
        return _files_below(path) == {*files, FOLDER_RECORD} and all(
            not (path / name).is_symlink() and sha256_of(path / name) == digest for name, digest in files.items()
        )
    except (OSError, InputError, KeyError, TypeError):
        return False


def _files_below(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_symlink() or not path.is_dir()}


def _sealed(content: bytes) -> bytes:
    """Insert the digest into the blank mark in `content`."""
    at = content.index(_BLANK) + len(_LABEL)
    return content[:at] + hashlib.sha256(content).hexdigest().encode() + content[at + len(_ZEROS) :]


def _inflated(file: BinaryIO) -> BinaryIO:
    magic = file.read(2)
    file.seek(0)
    inflated: BinaryIO = igzip.open(file, "rb") if magic == GZIP_MAGIC else file
    return inflated


def _is_intact(content: BinaryIO) -> bool:
    head = content.read(_HEAD_BYTES)
    at = head.find(_LABEL)
    if at < 0:
        return False
    at += len(_LABEL)
    written = head[at : at + len(_ZEROS)]
    digest = hashlib.sha256(head[:at] + _ZEROS + head[at + len(_ZEROS) :])
    while piece := content.read(_PIECE_BYTES):
        digest.update(piece)
    return digest.hexdigest().encode() == written
