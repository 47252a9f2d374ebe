"""Local copies of prepared cases: made once per node, verified, bounded, and never needed."""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from gtvray.config import CacheConfig, Config, load_config
from gtvray.data import CachedCase, CaseCache, nearest_copies
from gtvray.data.cache import local as module
from gtvray.datasets import index_dataset
from gtvray.errors import ConfigError
from gtvray.geometry import Box

COPY = """
import json, sys
from pathlib import Path
from gtvray.config import CacheConfig
from gtvray.data import CachedCase, nearest_copies
cases = [CachedCase(*each[:1], Path(each[1]), each[2]) for each in json.loads(sys.stdin.read())]
for case in nearest_copies(cases, CacheConfig(local=sys.argv[1])):
    print(case.folder)
"""


@pytest.fixture
def shared(dataset_folder: Path, tmp_path: Path) -> list[CachedCase]:
    config = Config()
    cache = CaseCache(tmp_path / "shared", config.preprocessing, config.cache)
    return cache.prepare_all(index_dataset(dataset_folder).cases)


@pytest.fixture
def own(tmp_path: Path) -> Path:
    return tmp_path / "own"


def config(own: Path, max_gb: float = 0.0) -> CacheConfig:
    return CacheConfig(local=str(own), local_max_gb=max_gb)


def copies(own: Path) -> list[str]:
    return sorted(path.name for path in own.iterdir() if not path.name.startswith(".")) if own.is_dir() else []


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


def test_without_the_setting_the_shared_cases_are_read(shared: list[CachedCase]) -> None:
    assert nearest_copies(shared, CacheConfig()) == shared


def test_copies_are_equal_and_read_without_the_shared_cache(shared: list[CachedCase], own: Path) -> None:
    read = [case.read(Box.whole(case.shape)) for case in shared]
    found = nearest_copies(shared, config(own))
    shutil.rmtree(shared[0].folder.parent)
    assert [case.folder.parent for case in found] == [own] * 3
    assert [(case.case_id, case.meta) for case in found] == [(case.case_id, case.meta) for case in shared]
    for case, (hu, mask) in zip(found, read, strict=True):
        again = case.read(Box.whole(case.shape))
        assert np.array_equal(again[0], hu)
        assert np.array_equal(again[1], mask)
    # The next trial of the process needs the shared cache neither.
    assert [case.folder for case in nearest_copies(shared, config(own))] == [case.folder for case in found]


def test_a_damaged_copy_is_replaced(shared: list[CachedCase], own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (copied, *_) = nearest_copies(shared, config(own))
    (copied.folder / "hu.b2nd").write_bytes(b"x")
    monkeypatch.setattr(module, "_verified", set())
    (again, *_) = nearest_copies(shared, config(own))
    assert (again.folder / "hu.b2nd").read_bytes() == (shared[0].folder / "hu.b2nd").read_bytes()


def test_a_full_disk_leaves_the_rest_on_shared_storage(
    shared: list[CachedCase], own: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    copy = shutil.copyfile

    def limited(source: Path, target: Path) -> None:
        if source.parent == shared[1].folder:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))
        copy(source, target)

    monkeypatch.setattr(shutil, "copyfile", limited)
    found = nearest_copies(shared, config(own))
    assert [case.folder.parent for case in found] == [own, *[shared[0].folder.parent] * 2]
    assert copies(own) == [shared[0].folder.name]
    (warning,) = warnings(caplog)
    assert warning.startswith("2 cases are read from shared storage")
    assert "full" in warning


def test_the_size_is_limited_and_cases_in_use_stay(
    shared: list[CachedCase], own: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sizes = [sum(file.stat().st_size for file in case.folder.iterdir()) for case in shared]
    found = nearest_copies(shared, config(own, (sizes[0] + sizes[1] + 10) / 1e9))
    assert [case.folder.parent for case in found] == [own, own, shared[0].folder.parent]
    assert copies(own) == sorted(case.folder.name for case in shared[:2])
    assert "do not fit" in warnings(caplog)[0]


def test_copies_of_ended_processes_make_room(shared: list[CachedCase], own: Path) -> None:
    assert len(_in_processes(shared[:1], own, 1)[0]) == 1
    size = max(sum(file.stat().st_size for file in case.folder.iterdir()) for case in shared)
    (found,) = nearest_copies(shared[1:2], config(own, 1.5 * size / 1e9))
    assert copies(own) == [found.folder.name]


def test_a_folder_that_cannot_be_written_is_not_needed(
    shared: list[CachedCase], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    assert nearest_copies(shared, config(tmp_path / "file" / "own")) == shared
    assert len(warnings(caplog)) == 1


def test_several_processes_of_a_node_copy_each_case_once(shared: list[CachedCase], own: Path) -> None:
    found = _in_processes(shared, own, 3)
    assert found == [[str(own / case.folder.name) for case in shared]] * 3
    assert copies(own) == sorted(case.folder.name for case in shared)
    assert not list(own.glob(".partial-*"))


def test_the_folder_must_be_absolute() -> None:
    with pytest.raises(ConfigError, match="absolute"):
        load_config(overrides=["cache.local=scratch"])


def _in_processes(cases: list[CachedCase], own: Path, count: int) -> list[list[str]]:
    given = json.dumps([[case.case_id, str(case.folder), case.meta] for case in cases])
    command = [sys.executable, "-W", "error", "-c", COPY, str(own)]
    pipe = subprocess.PIPE
    running = [subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) for _ in range(count)]
    for process in running:
        assert process.stdin is not None
        process.stdin.write(given)
        process.stdin.close()
    found = []
    for process in running:
        assert process.stdout is not None
        with process.stdout as said:
            found.append(said.read().split())
        assert process.wait() == 0
    return found
