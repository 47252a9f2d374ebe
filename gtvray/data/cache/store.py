"""The cache's folder: verified entries, leases on those in use, and eviction.

Several processes use it at once, and any may be killed. They coordinate by two kinds of locks, which the system
releases however a process ends:

- `.lock`: shared while an entry is being leased, exclusive while entries are removed.
- a file in `.leases` for each process, locked as long as it runs, with the keys of the entries it uses.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from isal import isal_zlib

from gtvray.errors import InputError, ResourceError
from gtvray.io import flock, read_json, read_text, write_json

META = "meta.json"
# A folder with neither file is nobody's entry: somebody else may keep something in the folder, and it is not evicted.
_ENTRY_FILES = (META, "hu.b2nd")
_LOCK, _LEASES = ".lock", ".leases"
_STALE_S = 6 * 3600
_log = logging.getLogger(__name__)

# One lease file a process and folder: entries stay in use until the process that requested them ends.
_held: dict[Path, int] = {}
_held_lock = threading.Lock()


class EntryStore:
    """Entries by key under one folder.

    Args:
        folder: created when needed.
        max_bytes: limit on the size of all entries, 0 for none.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self._folder = folder.resolve()
        self._max_bytes = max_bytes

    def path(self, key: str) -> Path:
        """The folder of an entry, whether it exists or not."""
        return self._folder / key

    def lease(self, key: str) -> None:
        """Protect an entry, which need not exist yet, from eviction until this process ends."""
        with self._locked(fcntl.LOCK_SH), _held_lock:
            handle = _held.get(self._folder)
            if handle is None or os.fstat(handle).st_nlink == 0:
                handle = _held[self._folder] = self._open_lease()
            os.write(handle, f"{key}\n".encode())

    def find(self, key: str) -> dict[str, Any] | None:
        """The metadata of an entry, or None if there is none; a damaged entry is removed, with a warning."""
        entry = self.path(key)
        damage = _damage(entry)
        if damage is None:
            # The folder's modification time is the time of last use.
            os.utime(entry)
            return dict(read_json(entry / META))
        if damage:
            with self._locked(fcntl.LOCK_EX):
                # Another process may have replaced it in the meantime.
                retired = self._retire(key) if _damage(entry) else None
            if retired is not None:
                _log.warning("prepared case %s is damaged (%s); it is prepared again", entry, damage)
                shutil.rmtree(retired, ignore_errors=True)
            else:
                return self.find(key)
        return None

    def make_space(self, incoming_bytes: int = 0) -> int:
        """Evict the least recently used entries until the rest is within the limit; also what killed writers left.

        Args:
            incoming_bytes: size of an entry that is about to be added.

        Returns:
            number of evicted entries.

        Raises:
            ResourceError: the entries in use alone exceed the limit.
        """
        if not self._max_bytes:
            return 0
        retired: list[Path] = []
        with self._locked(fcntl.LOCK_EX):
            entries = {entry.name: _size(entry) for entry in self._entries()}
            total = sum(entries.values()) + incoming_bytes
            leased = self._leased() if total > self._max_bytes else set()
            for entry in sorted(map(self.path, entries), key=lambda entry: entry.stat().st_mtime_ns):
                if total > self._max_bytes and entry.name not in leased:
                    retired.append(self._retire(entry.name))
                    total -= entries[entry.name]
        for folder in (*retired, *self._leftovers()):
            shutil.rmtree(folder, ignore_errors=True)
        if total > self._max_bytes:
            raise ResourceError(
                "the cases in use do not fit into the cache",
                where=self._folder,
                expected=f"at most {self._max_bytes / 1e9:.3g} GB (cache.max_gb)",
                found=f"{total / 1e9:.3g} GB",
                do="raise cache.max_gb, or use fewer cases or a coarser preprocessing.spacing_mm",
            )
        return len(retired)

    def size_bytes(self) -> int:
        """Size of all entries."""
        return sum(_size(entry) for entry in self._entries())

    @contextmanager
    def _locked(self, kind: int) -> Iterator[None]:
        self._folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(self._folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            flock(handle, kind, self._folder)
            yield
        finally:
            os.close(handle)

    def _entries(self) -> list[Path]:
        with suppress(FileNotFoundError):
            found = (Path(entry.path) for entry in os.scandir(self._folder) if not entry.name.startswith("."))
            return [entry for entry in found if any((entry / name).is_file() for name in _ENTRY_FILES)]
        return []

    def _leftovers(self) -> list[Path]:
        """Folders left by killed writers; recent ones may belong to running ones."""
        found = [*self._folder.glob(".partial-*"), *self._folder.glob(".retired-*")]
        with suppress(FileNotFoundError):
            return [old for old in found if time.time() - old.stat().st_mtime > _STALE_S]
        return []

    def _retire(self, key: str) -> Path:
        """Rename an entry, which removes it at once; its files can be deleted after the lock is released."""
        retired = Path(tempfile.mkdtemp(prefix=".retired-", dir=self._folder))
        self.path(key).rename(retired / key)
        return retired

    def _open_lease(self) -> int:
        (self._folder / _LEASES).mkdir(exist_ok=True)
        handle, _ = tempfile.mkstemp(dir=self._folder / _LEASES)
        flock(handle, fcntl.LOCK_EX, self._folder)
        return handle

    def _leased(self) -> set[str]:
        """Keys that running processes use; the lease files of others are removed."""
        keys: set[str] = set()
        for file in (self._folder / _LEASES).glob("*"):
            handle = os.open(file, os.O_RDONLY)
            try:
                flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB, file)
                file.unlink()
            except BlockingIOError:
                keys.update(read_text(file).split())
            finally:
                os.close(handle)
        return keys


def seal(folder: Path, meta: dict[str, Any]) -> None:
    """Write meta.json beside an entry's other files, with the CRC-32 of each file and of itself."""
    sealed = {**meta, "files": _checksums(folder)}
    write_json(folder / META, {**sealed, "crc32": _checksum_of(sealed)})


def _checksums(folder: Path) -> dict[str, int]:
    files = sorted(file for file in folder.iterdir() if file.name != META)
    return {file.name: isal_zlib.crc32(file.read_bytes()) for file in files}


def _checksum_of(meta: dict[str, Any]) -> int:
    return isal_zlib.crc32(json.dumps(meta, sort_keys=True).encode())


def _damage(entry: Path) -> str | None:
    """The damage of an entry: None if it is sound, "" if there is no entry."""
    if not entry.exists():
        return ""
    try:
        meta = read_json(entry / META)
        if meta.pop("crc32") != _checksum_of(meta):
            return META
        stored, found = meta["files"], _checksums(entry)
    except (InputError, OSError, KeyError, TypeError, AttributeError) as error:
        return type(error).__name__
    wrong = sorted(name for name in {*stored, *found} if stored.get(name) != found.get(name))
    return ", ".join(wrong) if wrong else None


def _size(entry: Path) -> int:
    with suppress(FileNotFoundError):
        return sum(file.stat().st_size for file in os.scandir(entry))
    return 0
