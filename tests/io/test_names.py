"""File names as other systems write them are found; what could mean two files is refused."""

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
def test_a_listed_path_is_found(folder: Path, listed: str, found: str) -> None:
    path = find_listed(folder, listed)
    assert path.is_file()
    assert path.resolve() == folder.resolve() / "imagesTr" / found


def test_an_absolute_path_stays_one(folder: Path) -> None:
    listed = str(folder / "IMAGEStr" / "a.nii.gz")
    assert find_listed(Path("/nowhere"), listed) == folder / "imagesTr" / "a.nii.gz"


def test_what_is_not_there_is_returned_as_it_would_be(folder: Path) -> None:
    assert find_listed(folder, "imagestr\\none.nii.gz") == folder / "imagesTr" / "none.nii.gz"
    assert find_entry(folder / "no", "x") == folder / "no" / "x"


@pytest.mark.parametrize("listed", ["C:\\data\\a.nii.gz", "c:/data/a.nii.gz", "\\\\server\\share\\a.nii.gz"])
def test_a_path_of_another_machine_is_named(folder: Path, listed: str) -> None:
    with pytest.raises(InputError, match="Windows machine"):
        find_listed(folder, listed)


def test_a_name_of_several_is_refused() -> None:
    assert match_name("c", ["c", "C"]) == "c"
    with pytest.raises(InputError, match="look alike"):
        match_name("ab", ["Ab", "aB"])
    assert match_name("x", ["a"]) is None


def test_litter_is_known() -> None:
    litter = ["._a.nii.gz", ".DS_Store", "Thumbs.db", "thumbs.db", "desktop.ini", "__MACOSX"]
    assert [name for name in litter if not is_system_file(name)] == []
    assert not any(map(is_system_file, ["a.nii.gz", ".hidden", "thumbs", "_a"]))


def test_names_have_one_form() -> None:
    assert canonical_name(DECOMPOSED) == COMPOSED != DECOMPOSED
    assert listed_parts(".\\imagesTr\\a.nii.gz") == ("imagesTr", "a.nii.gz")
