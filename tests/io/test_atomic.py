"""Atomic writes: an error, a full disk or a concurrent writer leaves no partial file."""

from __future__ import annotations

import errno
import hashlib
import os
import subprocess
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import pytest

from gtvray.errors import InputError, NotFoundError, ResourceError
from gtvray.geometry import Volume
from gtvray.io import atomic_dir, atomic_path, read_json, sha256_of, write_json, write_volume


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "tiny"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("mounting a small disk needs root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_file_is_replaced_atomically(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.txt"
    for text in ("one", "two"):
        with atomic_path(path) as temporary:
            assert temporary.parent == path.parent
            assert temporary.suffix == ".txt"
            before = path.read_text() if path.exists() else ""
            temporary.write_text(text)
            assert (path.read_text() if path.exists() else "") == before
        assert path.read_text() == text
    assert list(path.parent.iterdir()) == [path]
    assert path.stat().st_mode & 0o777 == 0o644


def test_folder_is_replaced_atomically(tmp_path: Path) -> None:
    path = tmp_path / "new" / "d"
    for name in ("one", "two"):
        with atomic_dir(path) as temporary:
            (temporary / "sub").mkdir()
            (temporary / "sub" / name).write_text(name)
        assert [file.name for file in (path / "sub").iterdir()] == [name]
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("there", [False, True])
@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError, SystemExit])
def test_error_leaves_the_old_content(tmp_path: Path, error: type[BaseException], there: bool) -> None:
    if there:
        (tmp_path / "d").mkdir()
        (tmp_path / "d" / "x").write_text("old")
        (tmp_path / "f").write_text("old")
    before = sorted(tmp_path.rglob("*"))

    def fail_in(writer: AbstractContextManager[Path], name: str) -> None:
        with writer as temporary:
            (temporary / name).write_text("new")
            raise error

    for writer, name in ((atomic_dir(tmp_path / "d"), "x"), (atomic_path(tmp_path / "f"), "")):
        with pytest.raises(error):
            fail_in(writer, name)
    assert sorted(tmp_path.rglob("*")) == before
    assert all(file.read_text() == "old" for file in before if file.is_file())


def test_concurrent_writers_of_a_folder_both_succeed(tmp_path: Path) -> None:
    path = tmp_path / "d"
    with atomic_dir(path) as slow:
        (slow / "who").write_text("slow")
        with atomic_dir(path) as fast:
            (fast / "who").write_text("fast")
        assert (path / "who").read_text() == "fast"
    assert (path / "who").read_text() == "slow"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(("complete_with", "stays"), [(None, "mine"), ("who", "other"), ("more", "mine")])
def test_folder_created_during_the_rename_is_handled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, complete_with: str | None, stays: str
) -> None:
    """Another writer creates the folder right before the rename."""
    path, replace = tmp_path / "d", Path.replace

    def arrive(self: Path, target: Path) -> Path:
        monkeypatch.setattr(Path, "replace", replace)
        path.mkdir()
        (path / "who").write_text("other")
        return replace(self, target)

    with atomic_dir(path, complete_with=complete_with) as mine:
        (mine / "who").write_text("mine")
        monkeypatch.setattr(Path, "replace", arrive)
    assert (path / "who").read_text() == stays
    assert list(tmp_path.iterdir()) == [path]


def test_complete_folder_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "d"
    for text, kept in (("partial", "partial"), ("complete", "complete"), ("again", "complete")):
        with atomic_dir(path, complete_with="done") as folder:
            (folder / "text").write_text(text)
            if text != "partial":
                (folder / "done").touch()
        assert (path / "text").read_text() == kept
    assert list(tmp_path.iterdir()) == [path]


def test_full_disk_is_reported_and_cleaned_up(tiny_disk: Path) -> None:
    noise = Volume(np.random.default_rng(0).integers(0, 1 << 15, (40, 40, 40)).astype(np.int16), np.eye(4))
    (tiny_disk / "old.json").write_text("1")
    with pytest.raises(ResourceError, match="disk is full") as caught:
        write_volume(tiny_disk / "v.nii.gz", noise)
    assert caught.value.fields["where"] == str(tiny_disk)
    with pytest.raises(ResourceError), atomic_dir(tiny_disk / "d") as folder:
        (folder / "x").write_bytes(bytes(200_000))
    with pytest.raises(ResourceError):
        write_json(tiny_disk / "old.json", list(range(100_000)))
    assert [file.name for file in tiny_disk.iterdir()] == ["old.json"]
    assert read_json(tiny_disk / "old.json") == 1


@pytest.mark.parametrize(
    ("code", "kind"),
    [(errno.ENOSPC, ResourceError), (errno.EDQUOT, ResourceError), (errno.EROFS, InputError), (errno.EIO, OSError)],
)
def test_fsync_errors_are_converted_and_cleaned_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, kind: type[Exception]
) -> None:
    def fail(handle: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(kind), atomic_path(tmp_path / "f") as file:
        file.write_text("x")
    with pytest.raises(kind), atomic_dir(tmp_path / "d") as folder:
        (folder / "x").write_text("x")
    assert list(tmp_path.iterdir()) == []


def test_path_below_a_file_is_not_writable(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file" / "x", tmp_path / "file" / "deep" / "x"):
        with pytest.raises(InputError, match="not writable"), atomic_path(path):
            pass


def test_json_round_trip(tmp_path: Path) -> None:
    value = {"b": [1, 2.5, None], "a": {"ü": True}}
    write_json(tmp_path / "x.json", value)
    assert read_json(tmp_path / "x.json") == value
    assert list(read_json(tmp_path / "x.json")) == ["b", "a"]
    for bad in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="JSON"):
            write_json(tmp_path / "x.json", [bad])
    assert read_json(tmp_path / "x.json") == value


@pytest.mark.parametrize("content", [b"", b"{", b"\xff"])
def test_invalid_json_is_an_input_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(InputError, match=r"not (a JSON file|UTF-8 text)"):
        read_json(tmp_path / "x.json")
    with pytest.raises(NotFoundError):
        read_json(tmp_path / "none.json")


def test_sha256_of_file(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(bytes(100_000))
    assert sha256_of(tmp_path / "x") == hashlib.sha256(bytes(100_000)).hexdigest()
