"""Copies of prepared cases on a node's own disk, from which trainers read instead of from shared storage.

The first reader on a node copies a case; others wait for it. A copy is verified against its checksums, and appears
complete or not at all. A case that cannot be copied is read from the shared cache, so a local disk that is full or
missing makes a training slower and does not end it.
"""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from gtvray.config import CacheConfig
from gtvray.data.cache.prepared import CachedCase
from gtvray.data.cache.store import META, EntryStore
from gtvray.errors import GtvrayError, ResourceError, first_line
from gtvray.io import atomic_dir, flock

_LOCK = ".copying"
_log = logging.getLogger(__name__)

# Copies that this process has verified. They are leased, and so not evicted, until it ends.
_verified: set[Path] = set()


def nearest_copies(cases: Sequence[CachedCase], config: CacheConfig) -> list[CachedCase]:
    """Return the cases with the folders that this node should read: local copies, if `cache.local` is set.

    Args:
        cases: cases in the shared cache.
        config: settings of the cache.
    """
    if config.local is None:
        return list(cases)
    folder = Path(config.local)
    store = EntryStore(folder, int(config.local_max_gb * 1e9))
    found: list[CachedCase] = []
    for case in cases:
        try:
            found.append(replace(case, folder=_copied(case, folder, store)))
        except (GtvrayError, OSError) as error:
            left = len(cases) - len(found)
            reason = error.what if isinstance(error, GtvrayError) else first_line(error)
            _log.warning("%d cases are read from shared storage: no local copy in %s: %s", left, folder, reason)
            return [*found, *cases[len(found) :]]
    return found


def _copied(case: CachedCase, folder: Path, store: EntryStore) -> Path:
    """The folder of a case's local copy, which is made if there is none.

    Raises:
        ResourceError: the disk is full, or the copies in use fill `cache.local_max_gb`.
        InputError, OSError: the folder cannot be written to, or the case cannot be read.
    """
    key = case.folder.name
    copy = store.path(key)
    if copy in _verified and copy.is_dir():
        return copy
    with _only_one(folder):
        store.lease(key)
        if store.find(key) is None:
            store.make_space(sum(file.stat().st_size for file in case.folder.iterdir()))
            with atomic_dir(copy, complete_with=META) as temporary:
                for file in case.folder.iterdir():
                    shutil.copyfile(file, temporary / file.name)
            if store.find(key) is None:
                raise ResourceError("a prepared case is damaged", where=case.folder, do="run it again")
    _verified.add(copy)
    return copy


@contextmanager
def _only_one(folder: Path) -> Iterator[None]:
    """Keep other processes of this node from copying the same cases."""
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        flock(handle, fcntl.LOCK_EX, folder)
        yield
    finally:
        os.close(handle)
