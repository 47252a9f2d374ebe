"""Strict parser of the text header of an NRRD file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

from gtvray.errors import VolumeError
from gtvray.io.stream import DO_EXPORT, Source

# A 3D Slicer segmentation has about 500 header bytes per segment, in ten lines. A line takes about 10 µs to parse, and
# a gzipped header of nothing but short lines is a file of a few kilobytes.
_MOST_HEADER_BYTES = 1 << 20
_MOST_HEADER_LINES = 1 << 15
_MOST_AXES = 16
# fmt: off
_FIELDS = (
    "dimension", "type", "block size", "encoding", "endian", "content", "old min", "old max", "min", "max",
    "data file", "line skip", "byte skip", "number", "sample units", "sizes", "spacings", "thicknesses",
    "axis mins", "axis maxs", "centers", "centerings", "labels", "units", "kinds", "space", "space dimension",
    "space units", "space origin", "space directions", "measurement frame",
)
# fmt: on
# Field names may be written without spaces.
_NAMES = {spelling: name for name in _FIELDS for spelling in (name, name.replace(" ", ""))}
_INTEGER = re.compile(r"[+-]?[0-9]{1,18}")
# Bounded lengths and unambiguous alternatives avoid catastrophic backtracking.
_REAL = re.compile(r"[+-]?(nan|inf|([0-9]{1,40}(\.[0-9]{0,40})?|\.[0-9]{1,40})(e[+-]?[0-9]{1,4})?)", re.IGNORECASE)
_VECTOR = re.compile(r"none|\([^()]*\)", re.IGNORECASE)
_CHOICE = TypeVar("_CHOICE")


@dataclass(frozen=True)
class Header:
    """Fields of an NRRD header as text, by lower-case name. All errors name `where` and the field."""

    fields: Mapping[str, str]
    where: object

    def __getitem__(self, name: str) -> str:
        """The text of a field.

        Raises:
            VolumeError: the field is missing.
        """
        value = self.fields.get(name)
        if value is None:
            raise VolumeError("NRRD header lacks a field", where=self.where, expected=name, do=DO_EXPORT)
        return value

    def get(self, name: str) -> str | None:
        """The text of a field, None if it is missing."""
        return self.fields.get(name)

    def invalid(self, name: str, expected: str, do: str = DO_EXPORT) -> VolumeError:
        """Build the error for an invalid field."""
        return VolumeError(
            f"NRRD field '{name}' is invalid or not supported",
            where=self.where,
            expected=expected,
            found=self[name] or "nothing",
            do=do,
        )

    def choice(self, name: str, values: Mapping[str, _CHOICE], do: str = DO_EXPORT) -> _CHOICE:
        """Look up the value of an enumerated field, case-insensitively.

        Raises:
            VolumeError: the text is not among `values`.
        """
        word = " ".join(self[name].lower().split())
        if word not in values:
            raise self.invalid(name, "one of " + ", ".join(values), do)
        return values[word]

    def integer(self, name: str, default: int | None = None) -> int:
        """Parse a field of one non-negative integer; `default` if it is missing.

        Raises:
            VolumeError: the field is anything else.
        """
        if default is not None and name not in self.fields:
            return default
        return self.integers(name, 1)[0]

    def integers(self, name: str, count: int) -> list[int]:
        """Parse a field of `count` non-negative integers.

        Raises:
            VolumeError: the field is anything else.
        """
        words = self[name].split()
        if len(words) != count or not all(_INTEGER.fullmatch(word) and int(word) >= 0 for word in words):
            raise self.invalid(name, f"{count} integer{'s' if count > 1 else ''}")
        return [int(word) for word in words]

    def numbers(self, name: str, count: int) -> list[float]:
        """Parse a field of `count` numbers, which may be NaN.

        Raises:
            VolumeError: the field is anything else.
        """
        words = self[name].split()
        if len(words) != count or not all(map(_REAL.fullmatch, words)):
            raise self.invalid(name, f"{count} numbers")
        return [float(word) for word in words]

    def axes(self) -> int:
        """Parse the number of axes, `dimension`.

        Raises:
            VolumeError: it is 0 or exceeds the limit of the standard.
        """
        dimension = self.integer("dimension")
        if not 1 <= dimension <= _MOST_AXES:
            raise self.invalid("dimension", f"1 to {_MOST_AXES}")
        return dimension

    def words(self, name: str, count: int) -> list[str]:
        """Parse a field of `count` words, optionally quoted.

        Raises:
            VolumeError: the number of words differs.
        """
        words = [one or other for one, other in re.findall(r'"([^"]*)"|([^\s"]+)', self[name])]
        if len(words) != count:
            raise self.invalid(name, f"{count} words")
        return words

    def vectors(self, name: str, count: int) -> list[tuple[float, float, float] | None]:
        """Parse a field of `count` vectors of three numbers; None for the word "none".

        Raises:
            VolumeError: the field is anything else.
        """
        texts = _VECTOR.findall(self[name])
        rows = [[word.strip() for word in text.strip("()").split(",")] for text in texts if text[0] == "("]
        if (
            len(texts) != count
            or _VECTOR.sub("", self[name]).strip()
            or not all(len(row) == 3 and all(map(_REAL.fullmatch, row)) for row in rows)
        ):
            raise self.invalid(name, f"{count} of (x,y,z) or none")
        numbers = ((float(x), float(y), float(z)) for x, y, z in rows)
        return [next(numbers) if text[0] == "(" else None for text in texts]


def parse_header(source: Source, start: bytes) -> Header:
    """Read a header up to its terminating empty line, or to the end of a detached header.

    Comments and key-value pairs (`key:=value`) are ignored.

    Raises:
        VolumeError: the header is malformed, or has a duplicate or unknown field.
    """
    where = source.where
    magic = (start + source.read_line(16)).rstrip(b"\r\n")
    if not re.fullmatch(rb"NRRD000[1-5]", magic):
        raise VolumeError("not an NRRD file", where=where, expected="NRRD0001 to NRRD0005", found=magic, do=DO_EXPORT)
    fields: dict[str, str] = {}
    remaining, lines = _MOST_HEADER_BYTES, 0
    while raw := source.read_line(remaining + 1):
        remaining, lines = remaining - len(raw), lines + 1
        if remaining < 0 or lines > _MOST_HEADER_LINES:
            expected = f"<= {_MOST_HEADER_BYTES} bytes and {_MOST_HEADER_LINES} lines"
            raise VolumeError("NRRD header is too long", where=where, expected=expected, do=DO_EXPORT)
        line = raw.rstrip(b"\r\n").decode("utf-8", "replace")
        if not line:
            break
        if line.startswith("#") or 0 <= line.find(":=") < (line + ": ").find(": "):
            continue
        spelling, colon, value = line.partition(":")
        name = _NAMES.get(spelling.strip().lower())
        if not colon or name is None:
            raise VolumeError(
                "NRRD header has an invalid line",
                where=where,
                expected="field: value",
                found=line[:80],
                do=DO_EXPORT,
            )
        if name in fields:
            raise VolumeError("NRRD header has a duplicate field", where=where, found=name, do=DO_EXPORT)
        fields[name] = value.strip()
    return Header(fields, where)
