"""Text files in UTF-8, with or without a byte-order mark, with the line endings of any system."""

from __future__ import annotations

import codecs
from pathlib import Path

from gtvray.errors import InputError, NotFoundError
from gtvray.io.content import identify
from gtvray.io.content_kinds import ContentKind

# Longer marks first: the mark of UTF-32 starts with that of UTF-16.
_MARKS = (
    (codecs.BOM_UTF32_LE, "UTF-32"),
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)
_TEXTUAL = frozenset({ContentKind.TEXT, ContentKind.JSON, ContentKind.FORM, ContentKind.UNKNOWN})
_DO = "save the file in UTF-8"


def read_text(path: Path) -> str:
    """Read a text file and convert its line endings to line feeds.

    Raises:
        NotFoundError: no such file.
        InputError: the file is unreadable or not UTF-8.
    """
    try:
        content = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise NotFoundError("no such file", where=path) from error
    except IsADirectoryError as error:
        raise NotFoundError("no such file", where=path, found="a folder") from error
    except OSError as error:
        raise InputError("file cannot be read", where=path, found=error.strerror) from error
    return decode_text(content, path)


def decode_text(content: bytes, where: object) -> str:
    """Decode the bytes of a text file and convert its line endings to line feeds.

    Raises:
        InputError: the bytes are not UTF-8; names the likely encoding or file format.
    """
    marked = next((name for mark, name in _MARKS if content.startswith(mark)), None)
    if marked is not None:
        raise _not_utf8(where, marked)
    if b"\0" in content:
        raise _not_utf8(where, _describe_nul(content))
    try:
        text = content.removeprefix(codecs.BOM_UTF8).decode()
    except UnicodeDecodeError as error:
        known = identify(content)
        if known.kind not in _TEXTUAL:
            raise _not_utf8(where, known.name) from error
        start = error.start + len(content) - len(content.removeprefix(codecs.BOM_UTF8))
        line = content.count(b"\n", 0, start) + 1
        found = f"byte 0x{content[start]:02x} in line {line}, as in Latin-1, Windows-1252 or GBK"
        raise _not_utf8(where, found) from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _describe_nul(content: bytes) -> str:
    """Describe bytes that contain NUL; in Western text in UTF-16 every other byte is NUL."""
    pairs = content[: len(content) // 2 * 2]
    if pairs and (not any(pairs[1::2]) or not any(pairs[::2])):
        return "UTF-16 without a byte-order mark"
    known = identify(content)
    return "binary data" if known.kind in _TEXTUAL else known.name


def _not_utf8(where: object, found: str) -> InputError:
    return InputError("file is not UTF-8 text", where=where, expected="UTF-8", found=found, do=_DO)
