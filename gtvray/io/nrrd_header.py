"""The text header of an NRRD file: its fields, each taken apart strictly and named when it is wrong."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

from gtvray.errors import VolumeError
from gtvray.io.stream import DO_EXPORT, Source

# A Slicer segmentation writes some 500 bytes a segment.
_MOST_HEADER_BYTES = 1 << 20
_MOST_AXES = 16
# fmt: off
_FIELDS = (
    "dimension", "type", "block size", "encoding", "endian", "content", "old min", "old max", "min", "max",
    "data file", "line skip", "byte skip", "number", "sample units", "sizes", "spacings", "thicknesses",
    "axis mins", "axis maxs", "centers", "centerings", "labels", "units", "kinds", "space", "space dimension",
    "space units", "space origin", "space directions", "measurement frame",
)
# fmt: on
# Some fields may be written in one word.
_NAMES = {spelt: name for name in _FIELDS for spelt in (name, name.replace(" ", ""))}
_WHOLE = re.compile(r"[+-]?[0-9]{1,18}")
# Lengths are bounded, and no text matches in two ways, so that none takes long to be refused.
_REAL = re.compile(r"[+-]?(nan|inf|([0-9]{1,40}(\.[0-9]{0,40})?|\.[0-9]{1,40})(e[+-]?[0-9]{1,4})?)", re.IGNORECASE)
_VECTOR = re.compile(r"none|\([^()]*\)", re.IGNORECASE)
_CHOICE = TypeVar("_CHOICE")


@dataclass(frozen=True)
class Header:
    """The fields of an NRRD header as text, by their name in small letters; all errors name `where` and the field."""

    fields: Mapping[str, str]
    where: object

    def __getitem__(self, name: str) -> str:
        """A field's text.

        Raises:
            VolumeError: the header does not have it.
        """
        value = self.fields.get(name)
        if value is None:
            raise VolumeError("NRRD header lacks a field", where=self.where, expected=name, do=DO_EXPORT)
        return value

    def get(self, name: str) -> str | None:
        """A field's text, or None."""
        return self.fields.get(name)

    def wrong(self, name: str, expected: str, do: str = DO_EXPORT) -> VolumeError:
        """The error for a field that cannot be used."""
        return VolumeError(
            f"NRRD field '{name}' cannot be used",
            where=self.where,
            expected=expected,
            found=self[name] or "nothing",
            do=do,
        )

    def choice(self, name: str, values: Mapping[str, _CHOICE], do: str = DO_EXPORT) -> _CHOICE:
        """What a field's word stands for; capitals do not count.

        Raises:
            VolumeError: it is none of those.
        """
        word = " ".join(self[name].lower().split())
        if word not in values:
            raise self.wrong(name, "one of " + ", ".join(values), do)
        return values[word]

    def whole(self, name: str, default: int | None = None) -> int:
        """A field of one whole number from 0; `default` if it is absent.

        Raises:
            VolumeError: it is something else.
        """
        if default is not None and name not in self.fields:
            return default
        return self.wholes(name, 1)[0]

    def wholes(self, name: str, count: int) -> list[int]:
        """A field of `count` whole numbers from 0.

        Raises:
            VolumeError: it is something else.
        """
        words = self[name].split()
        if len(words) != count or not all(_WHOLE.fullmatch(word) and int(word) >= 0 for word in words):
            raise self.wrong(name, f"{count} whole number{'s' if count > 1 else ''}")
        return [int(word) for word in words]

    def numbers(self, name: str, count: int) -> list[float]:
        """A field of `count` numbers, NaN among them.

        Raises:
            VolumeError: it is something else.
        """
        words = self[name].split()
        if len(words) != count or not all(map(_REAL.fullmatch, words)):
            raise self.wrong(name, f"{count} numbers")
        return [float(word) for word in words]

    def axes(self) -> int:
        """The number of axes, with which `sizes` and `kinds` must agree.

        Raises:
            VolumeError: none, or more than the standard allows.
        """
        dimension = self.whole("dimension")
        if not 1 <= dimension <= _MOST_AXES:
            raise self.wrong("dimension", f"1 to {_MOST_AXES}")
        return dimension

    def words(self, name: str, count: int) -> list[str]:
        """A field of `count` words, perhaps in quotes.

        Raises:
            VolumeError: there are more or fewer.
        """
        words = [one or other for one, other in re.findall(r'"([^"]*)"|([^\s"]+)', self[name])]
        if len(words) != count:
            raise self.wrong(name, f"{count} words")
        return words

    def vectors(self, name: str, count: int) -> list[tuple[float, float, float] | None]:
        """A field of `count` vectors of three numbers, or None where it says "none".

        Raises:
            VolumeError: it is something else.
        """
        texts = _VECTOR.findall(self[name])
        rows = [[word.strip() for word in text.strip("()").split(",")] for text in texts if text[0] == "("]
        if (
            len(texts) != count
            or _VECTOR.sub("", self[name]).strip()
            or not all(len(row) == 3 and all(map(_REAL.fullmatch, row)) for row in rows)
        ):
            raise self.wrong(name, f"{count} of (x,y,z) or none")
        numbers = ((float(x), float(y), float(z)) for x, y, z in rows)
        return [next(numbers) if text[0] == "(" else None for text in texts]


def parse_header(source: Source, start: bytes) -> Header:
    """Read a header to the empty line that ends it, or to the end of a header that stands alone.

    Comments and key-value pairs (`key:=value`) are passed over.

    Raises:
        VolumeError: it is no header, or has a field twice or one that the standard does not know.
    """
    where = source.where
    magic = (start + source.line(16)).rstrip(b"\r\n")
    if not re.fullmatch(rb"NRRD000[1-5]", magic):
        raise VolumeError("not an NRRD file", where=where, expected="NRRD0001 to NRRD0005", found=magic, do=DO_EXPORT)
    fields: dict[str, str] = {}
    room = _MOST_HEADER_BYTES
    while raw := source.line(room + 1):
        room -= len(raw)
        if room < 0:
            raise VolumeError(
                "NRRD header is too long", where=where, expected=f"<= {_MOST_HEADER_BYTES} bytes", do=DO_EXPORT
            )
        line = raw.rstrip(b"\r\n").decode("utf-8", "replace")
        if not line:
            break
        if line.startswith("#") or 0 <= line.find(":=") < (line + ": ").find(": "):
            continue
        spelt, colon, value = line.partition(":")
        name = _NAMES.get(spelt.strip().lower())
        if not colon or name is None:
            raise VolumeError(
                "NRRD header has a line that is no field",
                where=where,
                expected="field: value",
                found=line[:80],
                do=DO_EXPORT,
            )
        if name in fields:
            raise VolumeError("NRRD header has a field twice", where=where, found=name, do=DO_EXPORT)
        fields[name] = value.strip()
    return Header(fields, where)
