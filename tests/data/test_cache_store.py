"""The cache's folder with damage, a size limit, several processes and kill -9."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from gtvray.config import CacheConfig, PreprocessingConfig
from gtvray.data import CachedCase, CaseCache
from gtvray.data.cache import cases as cache_module
from gtvray.data.cache import digests as digests_module
from gtvray.data.cache.digests import DigestMemo
from gtvray.data.cache.store import EntryStore, seal
from gtvray.datasets import index_dataset
from gtvray.errors import ResourceError
from gtvray.geometry import Box
from gtvray.io import atomic_dir, sha256_of

WORKER = """
import sys, os, signal, time
from pathlib import Path
from gtvray.data.cache import store as module
from gtvray.data.cache.store import EntryStore, seal
from gtvray.io import atomic_dir
folder = Path(sys.argv[1])
store = EntryStore(folder, int(sys.argv[2]))
def make(key, size=1000):
    store.lease(key)
    if store.find(key) is None:
        with atomic_dir(store.path(key), complete_with="meta.json") as temporary:
            (temporary / "hu.b2nd").write_bytes(key.encode() * (size // len(key)))
            seal(temporary, {"key": key})
        return store.make_space()
def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)
"""


def _worker(folder: Path, max_bytes: int, code: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-W", "error", "-c", WORKER + code, str(folder), str(max_bytes)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def _line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def _make(folder: Path, key: str, age_s: float = 0, size: int = 1000) -> Path:
    with atomic_dir(folder / key, complete_with="meta.json") as temporary:
        (temporary / "hu.b2nd").write_bytes(b"x" * size)
        seal(temporary, {"key": key})
    os.utime(folder / key, (time.time() - age_s,) * 2)
    return folder / key


def _names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith("."))


@pytest.mark.parametrize("name", ["hu.b2nd", "mask.b2nd", "foreground.npy", "meta.json"])
def test_a_damaged_entry_is_prepared_again(
    name: str, tmp_path: Path, dataset_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    case = index_dataset(dataset_folder).cases[0]

    def prepared() -> tuple[CachedCase, CaseCache]:
        cache = CaseCache(tmp_path / "cache", PreprocessingConfig(), CacheConfig())
        return cache.prepare(case), cache

    first, _ = prepared()
    whole = Box.whole(first.shape)
    content = {file.name: file.read_bytes() for file in first.folder.iterdir()}
    rng = np.random.default_rng(0)
    for _ in range(5):
        damaged = bytearray(content[name])
        damaged[rng.integers(len(damaged))] ^= 1 << int(rng.integers(8))
        (first.folder / name).write_bytes(damaged)
        with caplog.at_level(logging.WARNING):
            again, cache = prepared()
        assert (cache.made, cache.found) == (1, 0)
        assert {file.name: file.read_bytes() for file in again.folder.iterdir()} == content
    assert caplog.text.count("prepared again") == 5
    again, cache = prepared()
    assert (cache.made, cache.found) == (0, 1)
    assert again.read(whole)[1].any()
    (first.folder / name).unlink()
    assert prepared()[1].made == 1
    assert _names(tmp_path / "cache") == [first.folder.name]


def test_the_least_recently_used_unleased_entries_are_evicted_first(tmp_path: Path) -> None:
    for age, key in enumerate("abcdef"):
        _make(tmp_path, key, age_s=100 - age)
    size = sum(file.stat().st_size for file in (tmp_path / "a").iterdir())
    with _worker(tmp_path, 0, "store.lease('a'); print('leased', flush=True); input()") as other:
        _evict_beside(other, tmp_path, size)
        other.kill()
    # A process that is gone, killed or not, holds nothing.
    assert EntryStore(tmp_path, 2 * size).make_space() == 1
    assert _names(tmp_path) == ["b", "f"]


def _evict_beside(other: subprocess.Popen[str], tmp_path: Path, size: int) -> None:
    assert _line(other) == "leased"
    store = EntryStore(tmp_path, 3 * size)
    store.lease("f")
    assert store.find("b") == json.loads((tmp_path / "b" / "meta.json").read_text())
    assert store.make_space() == 3
    assert _names(tmp_path) == ["a", "b", "f"]
    assert store.make_space() == 0
    store.lease("b")
    with pytest.raises(ResourceError, match="do not fit") as caught:
        EntryStore(tmp_path, 2 * size).make_space()
    assert "max_gb" in caught.value.fields["do"]


def test_reading_an_evicted_case_is_an_error_and_it_can_be_prepared_again(tmp_path: Path, dataset_folder: Path) -> None:
    case = index_dataset(dataset_folder).cases[0]
    cache = CaseCache(tmp_path / "cache", PreprocessingConfig(), CacheConfig())
    cached = cache.prepare(case)
    before = cached.read(Box.whole(cached.shape))
    shutil.rmtree(cached.folder)
    for attempt in (lambda: cached.read(Box.whole(cached.shape)), cached.foreground_ijk):
        with pytest.raises(ResourceError, match="missing from the cache"):
            attempt()
    assert cache.prepare(case).folder == cached.folder
    np.testing.assert_array_equal(cached.read(Box.whole(cached.shape)), before)


def test_an_unbounded_cache_evicts_nothing(tmp_path: Path) -> None:
    _make(tmp_path, "a", age_s=1e6)
    assert EntryStore(tmp_path, 0).make_space() == 0
    assert _names(tmp_path) == ["a"]


def test_old_leftovers_of_killed_writers_are_removed(tmp_path: Path) -> None:
    _make(tmp_path, "a")
    for name, age_s in ((".partial-1-a", 1e5), (".retired-2", 1e5), (".partial-3-b", 10)):
        (tmp_path / name / "inner").mkdir(parents=True)
        os.utime(tmp_path / name, (time.time() - age_s,) * 2)
    EntryStore(tmp_path, 10_000).make_space()
    assert sorted(entry.name for entry in tmp_path.glob(".[pr]*")) == [".partial-3-b"]


def test_several_writers_and_evictors_at_once(tmp_path: Path) -> None:
    """Each writes and rereads many entries in a small cache; none is incomplete, or evicted while it is in use."""
    code = """
sys.stdin.readline()
seed = int(sys.stdin.readline())
evicted = 0
for turn in range(40):
    key = f"{(turn * seed) % 17:032d}"
    evicted += make(key) or 0
    assert (store.path(key) / "hu.b2nd").read_bytes() == key.encode() * (1000 // 32), key
    # As if the process had ended and another had started: its leases are released.
    os.close(module._held.pop(folder.resolve()))
print(evicted)
"""
    workers = [_worker(tmp_path, 7000, code) for _ in range(3)]
    for seed, worker in zip((1, 3, 5), workers, strict=True):
        assert worker.stdin is not None
        worker.stdin.write(f"\n{seed}\n")
        worker.stdin.flush()
    evicted = [int(worker.communicate(timeout=60)[0]) for worker in workers]  # closes the pipes too
    assert [worker.returncode for worker in workers] == [0, 0, 0]
    assert sum(evicted) > 0
    store = EntryStore(tmp_path, 7000)
    store.make_space()
    assert 0 < store.size_bytes() <= 7000
    for key in _names(tmp_path):
        assert store.find(key) is not None
    assert list(tmp_path.glob(".retired*")) == list(tmp_path.glob(".partial*")) == []


@pytest.mark.parametrize(
    "failpoint",
    [
        "module._checksums = die",  # files written, not yet sealed
        "import gtvray.io.atomic as atomic; atomic._renamed = die",  # complete, not yet renamed
        "module.EntryStore._entries = die",  # during eviction, with the exclusive lock held
        "module.EntryStore._leftovers = die",  # evicted entries renamed, not yet removed
    ],
)
def test_a_killed_process_leaves_complete_entries_and_no_lock(tmp_path: Path, failpoint: str) -> None:
    _make(tmp_path, "old", age_s=100)
    worker = _worker(tmp_path, 1500, f"{failpoint}\nmake('new')")
    worker.communicate(timeout=60)
    assert worker.returncode == -signal.SIGKILL
    store = EntryStore(tmp_path, 1500)
    for key in _names(tmp_path):
        assert store.find(key) is not None
    assert set(_names(tmp_path)) & {"old", "new"}
    # The dead process' leases and locks do not block others.
    worker = _worker(tmp_path, 1500, "make('newer')")
    worker.communicate(timeout=60)
    assert worker.returncode == 0
    assert _names(tmp_path) == ["newer"]


def test_a_bounded_cache_of_cases(tmp_path: Path, dataset_folder: Path) -> None:
    folder = tmp_path / "cache"
    cases = index_dataset(dataset_folder).cases
    every = CaseCache(folder, PreprocessingConfig(), CacheConfig())
    made = every.prepare_all(cases)
    assert (every.made, every.found, every.evicted) == (3, 0, 0)
    assert every.size_bytes == sum(file.stat().st_size for case in made for file in case.folder.iterdir())
    with pytest.raises(ResourceError, match="do not fit"):
        CaseCache(folder, PreprocessingConfig(body_margin_mm=9), CacheConfig(max_gb=1e-6)).prepare(cases[0])


def test_a_digest_is_reused_until_the_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, memo = tmp_path / "scan", DigestMemo(tmp_path / "memo")
    reads: list[Path] = []
    monkeypatch.setattr(digests_module, "sha256_of", lambda path: reads.append(path) or sha256_of(path))
    file.write_bytes(b"one")
    # Just written: it could change again under the same time stamp.
    assert memo.sha256(file) == memo.sha256(file) == sha256_of(file)
    assert len(reads) == 2
    monkeypatch.setattr(digests_module, "_SETTLED_NS", 0)
    assert [memo.sha256(file), memo.sha256(file), DigestMemo(tmp_path / "memo").sha256(file)] == [sha256_of(file)] * 3
    assert len(reads) == 3
    # The same size and time of change, as `cp -p` leaves them.
    before = file.stat()
    file.write_bytes(b"two")
    while file.stat().st_ctime_ns == before.st_ctime_ns:  # the clock of a file system moves in steps
        os.utime(file, ns=(before.st_mtime_ns,) * 2)
    os.utime(file, ns=(before.st_mtime_ns,) * 2)
    assert memo.sha256(file) == sha256_of(file)
    (record,) = (tmp_path / "memo").iterdir()
    for broken in ("", "[]", "{}"):
        record.write_text(broken)
        assert memo.sha256(file) == sha256_of(file)


def test_foreground_voxels_are_sampled_evenly() -> None:
    mask = np.zeros((40, 40, 40), np.uint8)
    mask[5:35, 5:35, 5:35] = 1
    places = cache_module._sample_foreground(mask)
    assert len(places) == 4096
    assert mask[tuple(places.T)].all()
    assert np.abs(places.mean(axis=0) - 19.5).max() < 0.5
