"""JSON files, written atomically, and append-only JSON Lines files."""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path
from typing import Any

from gtvray.errors import InputError
from gtvray.io.atomic import atomic_path
from gtvray.io.locks import flock
from gtvray.io.text import decode_text, read_text


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON; keys keep their order, NaN and infinity are refused."""
    text = json.dumps(value, indent=2, allow_nan=False) + "\n"
    with atomic_path(path) as temporary:
        temporary.write_text(text)


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        NotFoundError: no such file.
        InputError: the file is not JSON in UTF-8.
    """
    try:
        return json.loads(read_text(path))
    except (json.JSONDecodeError, RecursionError) as error:
        raise InputError("not a JSON file", where=path, found=error) from error


def append_json_line(path: Path, value: Any, mode: int = 0o644) -> None:
    """Append an object as one line and flush it to disk; safe with concurrent writers.

    Args:
        path: the file; created if it does not exist.
        value: the object.
        mode: permissions of a new file.

    Raises:
        ResourceError: the file system has no locks.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, mode)
    try:
        # O_APPEND alone does not separate writers on every file system. The lock is on the handle that writes, not on a
        # lock file beside it, so that the file can be copied alone and a killed writer releases it.
        flock(handle, fcntl.LOCK_EX, path)
        size = os.fstat(handle).st_size
        # A line truncated by a crash must not merge with this one.
        start = "\n" if size and os.pread(handle, 1, size - 1) != b"\n" else ""
        rest = (start + json.dumps(value) + "\n").encode()
        while rest:
            rest = rest[os.write(handle, rest) :]
        os.fsync(handle)
    finally:
        os.close(handle)


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """Read all objects of a JSON Lines file; lines truncated by a crash are skipped, a missing file has none.

    Raises:
        InputError: the file is not UTF-8 text.
    """
    if not path.exists():
        return []
    content = path.read_bytes()
    # A power loss can leave lines of zero bytes. Any other zero byte means that the file is not UTF-8 text.
    cleaned = b"\n".join(line.strip(b"\0") for line in content.split(b"\n"))
    entries = []
    for line in decode_text(content if b"\0" in cleaned else cleaned, path).split("\n"):
        try:
            entries.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return entries
