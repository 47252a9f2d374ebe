"""File names from other operating systems are resolved; ambiguous ones are rejected."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest

from gtvray.errors import InputError
from gtvray.io import canonical_name, find_entry, find_listed, is_system_file, listed_parts, match_name

COMPOSED = unicodedata.normalize("NFC", "Müller_é")
DECOMPOSED = unicodedata.normalize("NFD", COMPOSED)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "imagesTr").mkdir()
    for name in ("a.nii.gz", "B.NII.GZ", f"{DECOMPOSED}.nii.gz", "c.nii.gz", "C.nii.gz", "d\\e.nii.gz"):
        (tmp_path / "imagesTr" / name).touch()
    return tmp_path


@pytest.mark.parametrize(
    ("listed", "found"),
    [
        ("./imagesTr/a.nii.gz", "a.nii.gz"),
        ("imagesTr\\a.nii.gz", "a.nii.gz"),
        (".\\imagesTr\\a.nii.gz", "a.nii.gz"),
        ("imagesTr\\/a.nii.gz", "a.nii.gz"),
        ("ImagesTR/A.nii.GZ", "a.nii.gz"),
        ("imagesTr/b.nii.gz", "B.NII.GZ"),
        (f"imagesTr/{COMPOSED}.nii.gz", f"{DECOMPOSED}.nii.gz"),
        (f"imagestr\\{COMPOSED.upper()}.nii.gz", f"{DECOMPOSED}.nii.gz"),
        ("imagesTr/c.nii.gz", "c.nii.gz"),
        ("imagesTr/C.nii.gz", "C.nii.gz"),
        ("imagesTr/d\\e.nii.gz", "d\\e.nii.gz"),
        ("imagesTr/../imagesTr/a.nii.gz", "a.nii.gz"),
    ],
)
def test_listed_path_is_resolved(folder: Path, listed: str, found: str) -> None:
    path = find_listed(folder, listed)
    assert path.is_file()
    assert path.resolve() == folder.resolve() / "imagesTr" / found


def test_absolute_path_is_resolved(folder: Path) -> None:
    listed = str(folder / "IMAGEStr" / "a.nii.gz")
    assert find_listed(Path("/nowhere"), listed) == folder / "imagesTr" / "a.nii.gz"


def test_missing_path_is_returned(folder: Path) -> None:
    assert find_listed(folder, "imagestr\\none.nii.gz") == folder / "imagesTr" / "none.nii.gz"
    assert find_entry(folder / "no", "x") == folder / "no" / "x"


@pytest.mark.parametrize("listed", ["C:\\data\\a.nii.gz", "c:/data/a.nii.gz", "\\\\server\\share\\a.nii.gz"])
def test_windows_drive_is_rejected(folder: Path, listed: str) -> None:
    with pytest.raises(InputError, match="Windows drive"):
        find_listed(folder, listed)


def test_ambiguous_name_is_rejected() -> None:
    assert match_name("c", ["c", "C"]) == "c"
    with pytest.raises(InputError, match="ambiguous"):
        match_name("ab", ["Ab", "aB"])
    assert match_name("x", ["a"]) is None


def test_system_files_are_recognised() -> None:
    names = ["._a.nii.gz", ".DS_Store", "Thumbs.db", "thumbs.db", "desktop.ini", "__MACOSX"]
    assert [name for name in names if not is_system_file(name)] == []
    assert not any(map(is_system_file, ["a.nii.gz", ".hidden", "thumbs", "_a"]))


def test_names_are_normalized() -> None:
    assert canonical_name(DECOMPOSED) == COMPOSED != DECOMPOSED
    assert listed_parts(".\\imagesTr\\a.nii.gz") == ("imagesTr", "a.nii.gz")
