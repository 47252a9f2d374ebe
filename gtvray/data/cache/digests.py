"""Digests of files, remembered so that a file which has not changed is not read again to know that."""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path

from gtvray.errors import InputError
from gtvray.io import read_json, sha256_of, write_json

# A file written to within this time could be written to again with the clock standing where it stood.
_SETTLED_NS = 2_000_000_000


class DigestMemo:
    """The sha256 of files, one small record a path.

    A record is believed while the file's size, times of change, inode and device are what they were before and after
    it was read. The time of change of the inode is among them: no tool can set it back, unlike the other.

    Args:
        folder: where records live; made when needed.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def sha256(self, path: Path) -> str:
        """The digest of a file's bytes as hexadecimal text."""
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
