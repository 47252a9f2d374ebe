"""Outputs never overwrite an input, each other, a foreign file or a modified output."""

from __future__ import annotations

import gzip
import json
import os
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest

from gtvray.errors import InputError
from gtvray.geometry import Volume
from gtvray.io import (
    atomic_path,
    check_outputs,
    has_mark,
    is_own_file,
    is_own_folder,
    output_folder,
    read_volume,
    require_distinct,
    write_output_json,
    write_output_text,
    write_output_volume,
    write_volume,
)


@pytest.fixture
def volume() -> Volume:
    array = np.zeros((7, 6, 5), np.uint8)
    array[2:4, 2, 2] = 1
    return Volume(array, np.diag([-1.0, 2.0, 3.0, 1.0]))


def _write(path: Path, volume: Volume, **options: bool) -> None:
    if path.suffix == ".json":
        write_output_json(path, {"a": [1]}, **options)
    elif path.suffix in (".html", ".md", ".yaml"):
        write_output_text(path, "a: 1\n", **options)
    else:
        write_output_volume(path, volume, **options)


NAMES = ["m.nii", "m.nii.gz", "M.NII.GZ", "m.nrrd", "m.json", "m.html", "m.md", "m.yaml"]


@pytest.mark.parametrize("name", NAMES)
def test_output_is_recognised_until_modified(tmp_path: Path, volume: Volume, name: str) -> None:
    path = tmp_path / name
    _write(path, volume)
    assert is_own_file(path)
    moved = tmp_path / "elsewhere" / name
    moved.parent.mkdir()
    shutil.copyfile(path, moved)
    assert is_own_file(moved)
    with pytest.raises(InputError, match="already exists"):
        _write(path, volume)
    _write(path, volume, overwrite=True)

    packed = path.read_bytes()
    content = bytearray(gzip.decompress(packed) if name.lower().endswith(".gz") else packed)
    content[-1] ^= 1
    path.write_bytes(gzip.compress(content) if name.lower().endswith(".gz") else content)
    assert not is_own_file(path)
    edited = path.read_bytes()
    with pytest.raises(InputError, match="already exists"):
        _write(path, volume, overwrite=True)
    assert path.read_bytes() == edited
    assert [file.name for file in tmp_path.iterdir() if file.name.startswith(".")] == []


@pytest.mark.parametrize("name", ["m.nii", "m.nii.gz", "m.nrrd"])
def test_marked_volume_round_trip(tmp_path: Path, volume: Volume, name: str) -> None:
    write_output_volume(tmp_path / name, volume)
    back = read_volume(tmp_path / name)
    assert back.same_grid(volume)
    np.testing.assert_array_equal(back.array, volume.array)


def test_marked_files_are_readable_by_other_programs(tmp_path: Path, volume: Volume) -> None:
    for name in ("m.nii.gz", "m.json", "m.yaml"):
        _write(tmp_path / name, volume)
    assert json.loads((tmp_path / "m.json").read_text())["a"] == [1]
    image = nibabel.load(tmp_path / "m.nii.gz")
    assert bytes(image.header["descrip"].item()).startswith(b"gtvray sha256:")  # type: ignore[attr-defined]


def test_mask_edited_in_another_program_is_not_overwritten(tmp_path: Path, volume: Volume) -> None:
    path = tmp_path / "m.nii.gz"
    write_output_volume(path, volume)
    image = nibabel.load(path)
    corrected = np.asarray(image.dataobj).copy()  # type: ignore[attr-defined]
    corrected[3, 3, 3] = 1
    # nibabel and ITK keep `descrip`, and so the mark, whose digest no longer matches.
    nibabel.save(nibabel.Nifti1Image(corrected, None, image.header), path)
    assert has_mark(path)
    assert not is_own_file(path)
    with pytest.raises(InputError, match="not an unmodified gtvray output"):
        check_outputs([path], overwrite=True)


@pytest.mark.parametrize("content", [b"", b"\x1f\x8b", b"\x1f\x8b\x08garbage", b"text", b"gtvray sha256:" + b"0" * 64])
def test_foreign_files_are_not_overwritten(tmp_path: Path, volume: Volume, content: bytes) -> None:
    path = tmp_path / "a.nii.gz"
    path.write_bytes(content)
    assert not is_own_file(path)
    plain = tmp_path / "plain.nii.gz"
    write_volume(plain, volume)
    for file in (path, plain):
        with pytest.raises(InputError, match="not an unmodified gtvray output"):
            check_outputs([file], overwrite=True)


@pytest.mark.parametrize("how", ["same", "dots", "symlink", "hard link", "folder link", "relative"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_input_is_not_overwritten_through_any_path(
    tmp_path: Path, volume: Volume, monkeypatch: pytest.MonkeyPatch, how: str, overwrite: bool
) -> None:
    folder = tmp_path / "scans"
    folder.mkdir()
    scan, output = folder / "ct.nii.gz", folder / "out.nii.gz"
    # An input may be an earlier output, such as a mask under evaluation.
    write_output_volume(scan, volume)
    if how == "same":
        output = scan
    elif how == "dots":
        output = folder / ".." / "scans" / "ct.nii.gz"
    elif how == "symlink":
        output.symlink_to(scan)
    elif how == "hard link":
        output.hardlink_to(scan)
    elif how == "folder link":
        (tmp_path / "link").symlink_to(folder)
        output = tmp_path / "link" / "ct.nii.gz"
    else:
        monkeypatch.chdir(folder)
        output = Path("ct.nii.gz")
    with pytest.raises(InputError, match="overwrite an input"):
        check_outputs([output], inputs=[scan], overwrite=overwrite)


@pytest.mark.parametrize(
    ("one", "two"), [("a", "a"), ("a", "b/../a"), ("Case", "case"), ("e\u0301", "\u00e9"), ("n/X/m", "n/x/m")]
)
def test_duplicate_outputs_are_rejected(tmp_path: Path, one: str, two: str) -> None:
    (tmp_path / "b").mkdir()
    with pytest.raises(InputError, match="two outputs have the same name"):
        require_distinct([tmp_path / one, tmp_path / two])


def test_unwritable_outputs_are_rejected(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "nowhere").symlink_to(tmp_path / "missing")
    (tmp_path / "folder").mkdir()
    for path, what in (
        (tmp_path / "file" / "m.nii.gz", "not a folder"),
        (tmp_path / "nowhere", "already exists"),
        (tmp_path / "nowhere" / "m.nii.gz", "not a folder"),
        (tmp_path / "folder", "already exists"),
        (tmp_path / ("x" * 249 + ".nii.gz"), "empty or too long"),
        (tmp_path / "a\nb.nii.gz", "control characters"),
        (Path(os.fsdecode(b"caf\xe9.nii.gz")), "not UTF-8"),
    ):
        with pytest.raises(InputError, match=what):
            check_outputs([path], overwrite=True)


def test_longest_name_is_written(tmp_path: Path, volume: Volume) -> None:
    path = tmp_path / ("é" * 124 + ".nii.gz")
    check_outputs([path])
    write_output_volume(path, volume)
    assert is_own_file(path)


def test_outputs_in_protected_folders_are_rejected(tmp_path: Path) -> None:
    (tmp_path / "bundle" / "locator").mkdir(parents=True)
    for output in (tmp_path / "bundle" / "m.nii.gz", tmp_path / "bundle" / "new" / "m.nii.gz"):
        with pytest.raises(InputError, match="scans, masks or a model"):
            check_outputs([output], closed=[tmp_path / "bundle"])
    with pytest.raises(InputError, match="scans, masks or a model"):
        check_outputs([tmp_path / "bundle" / "m.nii.gz"], apart_from=[tmp_path / "bundle"])
    check_outputs([tmp_path / "bundle" / "masks" / "m.nii.gz"], apart_from=[tmp_path / "bundle"])


@pytest.mark.parametrize("links", [True, False])
def test_file_created_during_the_write_is_not_replaced(
    tmp_path: Path, volume: Volume, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    def no_links(*_: object) -> None:
        raise PermissionError(1, "no hard links here")

    if not links:
        monkeypatch.setattr(os, "link", no_links)
    write_output_volume(tmp_path / "new.nii", volume)
    assert is_own_file(tmp_path / "new.nii")
    path = tmp_path / "m.nii"

    def write() -> None:
        with atomic_path(path, may_replace=lambda: False) as temporary:
            temporary.write_bytes(b"new")
            path.write_bytes(b"foreign")

    with pytest.raises(InputError, match="already exists"):
        write()
    assert path.read_bytes() == b"foreign"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["m.nii", "new.nii"]


def test_only_unmodified_folder_is_replaced(tmp_path: Path) -> None:
    target = tmp_path / "report"

    def write(text: str, overwrite: bool) -> None:
        with output_folder(target, overwrite=overwrite) as folder:
            (folder / "pictures").mkdir()
            (folder / "pictures" / "a.png").write_text(text)

    write("one", overwrite=False)
    assert is_own_folder(target)
    with pytest.raises(InputError, match="already exists"):
        write("two", overwrite=False)
    write("two", overwrite=True)
    assert (target / "pictures" / "a.png").read_text() == "two"
    for change in ("added", "edited", "removed"):
        with output_folder(target, overwrite=True) as folder:
            (folder / "a.csv").write_text("1")
        if change == "added":
            (target / "notes.txt").write_text("mine")
        elif change == "edited":
            (target / "a.csv").write_text("2")
        else:
            (target / "a.csv").unlink()
        before = {path: path.read_bytes() for path in target.iterdir()}
        assert not is_own_folder(target), change
        with pytest.raises(InputError, match="not an unmodified gtvray output"):
            write("three", overwrite=True)
        assert {path: path.read_bytes() for path in target.iterdir()} == before
        shutil.rmtree(target)
    assert list(tmp_path.iterdir()) == []
