"""The cache is addressed by content and safe with two writers and kill -9."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gtvray.config import CacheConfig, PreprocessingConfig
from gtvray.data import CaseCache, fingerprint
from gtvray.data.cache.prepared import CachedCase
from gtvray.datasets import index_dataset
from gtvray.geometry import Box
from gtvray.io import read_volume
from gtvray.preprocessing import prepare, prepare_mask

PREPARE_ALL = """
import sys
from pathlib import Path
from gtvray.config import CacheConfig, PreprocessingConfig
from gtvray.data import CaseCache
from gtvray.datasets import index_dataset
from gtvray.data.cache import cases as cache
from gtvray.geometry import Box
cases = index_dataset(sys.argv[1]).cases
print("ready", flush=True)
sys.stdin.readline()
{before}
for case in cases:
    cached = CaseCache(Path(sys.argv[2]), PreprocessingConfig(), CacheConfig()).prepare(case)
    for _ in range(3):
        cached.read(Box.whole(cached.shape)), cached.foreground_ijk()
print("done")
"""
DIE_BEFORE_THE_SEAL = """
import os, signal
def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)
cache.seal = die
"""


def _cache(folder: Path, level: int = 3, **settings: Any) -> CaseCache:
    return CaseCache(folder, PreprocessingConfig(**settings), CacheConfig(codec_level=level))


def _entries(folder: Path) -> list[Path]:
    return sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))


def _start(dataset: Path, cache: Path, before: str = "") -> subprocess.Popen[str]:
    command = [sys.executable, "-W", "error", "-c", PREPARE_ALL.format(before=before), str(dataset), str(cache)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def _assert_whole(cached: CachedCase, dataset: Path) -> None:
    case = index_dataset(dataset).subset((cached.case_id,))[0]
    assert case.label is not None
    prepared = prepare(read_volume(case.image), PreprocessingConfig())
    hu, mask = cached.read(Box.whole(cached.shape))
    np.testing.assert_array_equal(hu, prepared.hu.array)
    np.testing.assert_array_equal(mask, prepare_mask(read_volume(case.label), prepared))


@pytest.mark.parametrize("level", [0, 3])
def test_a_cached_case_is_the_prepared_case(tmp_path: Path, dataset_folder: Path, level: int) -> None:
    case = index_dataset(dataset_folder).cases[1]
    cached = _cache(tmp_path / "cache", level).prepare(case)
    _assert_whole(cached, dataset_folder)
    hu, mask = cached.read(Box.whole(cached.shape))
    box = Box((5, 30, 1), (12, 41, 33))
    part_hu, part_mask = cached.read(box)
    np.testing.assert_array_equal(part_hu, hu[box.slices])
    np.testing.assert_array_equal(part_mask, mask[box.slices])
    assert (part_hu.dtype, part_mask.dtype) == (np.int16, np.uint8)
    places = cached.foreground_ijk()
    assert mask[tuple(places.T)].all()
    assert len(places) == min(4096, mask.sum())
    assert len(np.unique(places, axis=0)) == len(places)
    label = read_volume(case.label or "")
    assert cached.meta["tumour_ml"] == pytest.approx(float(label.array.sum()) * 0.08)


def test_entries_are_found_by_content(tmp_path: Path, dataset_folder: Path) -> None:
    case = index_dataset(dataset_folder).cases[0]
    first = _cache(tmp_path / "cache").prepare(case)
    stamp = (first.folder / "meta.json").stat().st_mtime_ns

    def again(**settings: Any) -> CachedCase:
        return _cache(tmp_path / "cache", **settings).prepare(index_dataset(dataset_folder).cases[0])

    # Neither windows nor compression changes what is prepared.
    assert again(windows_hu=((0.0, 80.0), (-1000.0, 1000.0))).folder == first.folder
    assert again(level=9).folder == first.folder
    assert (first.folder / "meta.json").stat().st_mtime_ns == stamp
    others = {
        again(spacing_mm=(4.0, 4.0, 4.0)).folder,
        again(body_margin_mm=12).folder,
        again(body_threshold_hu=-300).folder,
    }
    for name in ("data", "label"):
        shutil.copy(dataset_folder / "2" / f"{name}.nii.gz", dataset_folder / "1")
        if name == "label":
            others.add(again().folder)
        else:
            others.add(again().folder)
    assert len(others - {first.folder}) == 5
    # The same files elsewhere, under another name, are the same entry.
    shutil.copytree(dataset_folder / "2", tmp_path / "moved" / "x")
    moved = _cache(tmp_path / "cache").prepare(index_dataset(tmp_path / "moved").cases[0])
    assert (moved.folder, moved.case_id) == (again().folder, "x")


def test_an_incomplete_entry_is_prepared_again(tmp_path: Path, dataset_folder: Path) -> None:
    """As an interrupted `rm -r` leaves it."""
    case = index_dataset(dataset_folder).cases[0]
    cached = _cache(tmp_path / "cache").prepare(case)
    (cached.folder / "meta.json").unlink()
    (cached.folder / "mask.b2nd").unlink()
    _assert_whole(_cache(tmp_path / "cache").prepare(case), dataset_folder)


def test_threads_prepare_duplicate_cases_in_one_call(tmp_path: Path, dataset_folder: Path) -> None:
    for name in ("3", "4", "5"):
        shutil.copytree(dataset_folder / "1", dataset_folder / name)
    reported: list[tuple[int, int]] = []
    cases = index_dataset(dataset_folder).cases
    cached = _cache(tmp_path / "cache").prepare_all(cases, lambda *step: reported.append(step), workers=4)
    assert [case.case_id for case in cached] == [case.case_id for case in cases]
    assert reported == [(n, 6) for n in range(1, 7)]
    assert len({case.folder for case in cached}) == 3
    assert _entries(tmp_path / "cache") == sorted({case.folder for case in cached})


def test_two_processes_prepare_the_same_cases_at_once(tmp_path: Path, dataset_folder: Path) -> None:
    processes = [_start(dataset_folder, tmp_path / "cache") for _ in range(2)]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    for process in processes:
        assert process.communicate(timeout=60)[0] == "done\n"
        assert process.returncode == 0
    assert len(_entries(tmp_path / "cache")) == 3
    assert list(tmp_path.glob("cache/.partial*")) == []
    for cached in _cache(tmp_path / "cache").prepare_all(index_dataset(dataset_folder).cases):
        _assert_whole(cached, dataset_folder)


def test_a_killed_writer_leaves_no_incomplete_entry(tmp_path: Path, dataset_folder: Path) -> None:
    process = _start(dataset_folder, tmp_path / "cache", DIE_BEFORE_THE_SEAL)
    assert process.communicate("\n", timeout=60)[0] == ""
    assert process.returncode == -signal.SIGKILL
    (half,) = (tmp_path / "cache").glob(".partial-*")
    assert _entries(tmp_path / "cache") == []
    assert sorted(file.name for file in half.iterdir()) == ["foreground.npy", "hu.b2nd", "mask.b2nd"]
    cached = _cache(tmp_path / "cache").prepare_all(index_dataset(dataset_folder).cases)
    assert len(cached) == 3
    for case in cached:
        _assert_whole(case, dataset_folder)


def test_the_fingerprint_follows_the_files(tmp_path: Path, dataset_folder: Path) -> None:
    cases = _cache(tmp_path / "cache").prepare_all(index_dataset(dataset_folder).cases)
    whole = fingerprint(cases, cases[:2])
    assert whole == fingerprint(cases[::-1], cases[:2])
    assert (whole.cases, whole.spacing_mm) == (3, (4.0, 4.0, 5.0))
    # Only training cases shape a plan.
    ml = [case.meta["tumour_ml"] for case in cases]
    assert whole.tumour_ml == pytest.approx((ml[0] + ml[1]) / 2)
    assert fingerprint(cases, cases[2:]).digest == whole.digest
    assert fingerprint(cases[:2], cases[:2]).digest != whole.digest
    shutil.copy(dataset_folder / "2" / "data.nii.gz", dataset_folder / "1")
    changed = _cache(tmp_path / "cache").prepare_all(index_dataset(dataset_folder).cases)
    assert fingerprint(changed, changed).digest != whole.digest
    assert json.loads(json.dumps(whole.as_dict()))["digest"] == whole.digest
