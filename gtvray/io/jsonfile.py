"""JSON files, read with an explanation and written whole; and files of one JSON object a line, only ever added to."""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path
from typing import Any

from gtvray.errors import InputError, NotFoundError
from gtvray.io.atomic import atomic_path


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON; keys keep their order, NaN and infinity are refused."""
    text = json.dumps(value, indent=2, allow_nan=False) + "\n"
    with atomic_path(path) as temporary:
        temporary.write_text(text)


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        NotFoundError: no such file.
        InputError: it is not JSON.
    """
    try:
        return json.loads(path.read_text())
    except FileNotFoundError as error:
        raise NotFoundError("no such file", where=path) from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError("not a JSON file", where=path, found=error) from error


def append_json_line(path: Path, value: Any) -> None:
    """Add an object as a line; on disk when this returns. Lines of several writers stay whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        # Not every file system keeps the lines of two writers apart by itself; the lock ends with the handle.
        fcntl.flock(handle, fcntl.LOCK_EX)
        size = os.fstat(handle).st_size
        # A line that a crash cut off must not swallow this one.
        start = "\n" if size and os.pread(handle, 1, size - 1) != b"\n" else ""
        rest = (start + json.dumps(value) + "\n").encode()
        while rest:
            rest = rest[os.write(handle, rest) :]
        os.fsync(handle)
    finally:
        os.close(handle)


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """Every object of such a file, or none if there is no file; a line cut off by a crash is passed over."""
    if not path.exists():
        return []
    entries = []
    for line in path.read_text().splitlines():
        try:
            entries.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return entries
