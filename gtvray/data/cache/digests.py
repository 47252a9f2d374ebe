"""Digests of files, stored so that an unchanged file is not read again."""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path

from gtvray.errors import InputError
from gtvray.io import read_json, sha256_of, write_json

# A file changed within this time could be changed again with the same time stamp.
_SETTLED_NS = 2_000_000_000


class DigestMemo:
    """The sha256 of files, one small record a path.

    A record is valid while the file's size, modification and inode change times, inode and device are those from
    before and after it was read. Unlike the modification time, no tool can set back the inode change time.

    Args:
        folder: for the records; created when needed.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def sha256(self, path: Path) -> str:
        """The digest of a file's bytes, hexadecimal."""
        resolved = str(path.resolve())
        record = self._folder / f"{hashlib.sha256(resolved.encode()).hexdigest()[:32]}.json"
        state = _state(path)
        try:
            known = read_json(record)
            if known["path"] == resolved and known["state"] == state:
                return str(known["sha256"])
        except (InputError, KeyError, TypeError):
            pass
        digest = sha256_of(path)
        changed_ns = max(state[1], state[2])
        if _state(path) == state and time.time_ns() - changed_ns > _SETTLED_NS:
            write_json(record, {"path": resolved, "state": state, "sha256": digest})
        return digest


def _state(path: Path) -> list[int]:
    found = os.stat(path)
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino, found.st_dev]
