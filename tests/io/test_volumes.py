"""Reading and writing volumes of any format, detected from the bytes; anything else is rejected."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import numpy as np
import pytest

from gtvray.errors import InputError, NotFoundError, TooLargeError, VolumeError
from gtvray.geometry import Volume
from gtvray.io import decode_nifti, decode_volume, encode_nifti, encode_nrrd, read_volume, write_volume

AFFINE = np.array([[-0.9765625, 0, 0, 250.5], [0, -0.9765625, 0, 120.25], [0, 0, 2.5, -700.75], [0, 0, 0, 1]])
VOLUME = Volume(np.arange(-100, 110, dtype=np.int16).reshape(5, 6, 7), AFFINE)
CONTENTS = {
    "nii": encode_nifti(VOLUME, compress=False),
    "nii.gz": encode_nifti(VOLUME, compress=True),
    "nrrd": encode_nrrd(VOLUME),
}


def _same(volume: Volume) -> None:
    np.testing.assert_array_equal(volume.array, VOLUME.array)
    np.testing.assert_array_equal(volume.affine, VOLUME.affine)


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.nrrd", "a.seg.nrrd", "a.dcm", "a"])
@pytest.mark.parametrize("form", CONTENTS)
def test_format_is_detected_from_the_bytes(tmp_path: Path, form: str, name: str) -> None:
    (tmp_path / name).write_bytes(CONTENTS[form])
    _same(read_volume(tmp_path / name))
    _same(decode_volume(CONTENTS[form]))


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.nrrd", "A.NII.GZ", "a.seg.nrrd"])
def test_extension_selects_the_written_format(tmp_path: Path, name: str) -> None:
    write_volume(tmp_path / name, VOLUME)
    _same(read_volume(tmp_path / name))
    form = next(form for form in ("nii.gz", "nii", "nrrd") if name.lower().endswith(form))
    assert (tmp_path / name).read_bytes() == CONTENTS[form]


def test_unsupported_extension_is_not_written(tmp_path: Path) -> None:
    for name in ("a.mha", "a", "a.nhdr", "nii.txt"):
        with pytest.raises(InputError, match="unsupported file extension"):
            write_volume(tmp_path / name, VOLUME)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("dtype", ["bool", "int8", "uint64", "float32"])
@pytest.mark.parametrize("name", ["a.nii", "a.nrrd"])
def test_dtype_is_kept(tmp_path: Path, name: str, dtype: str) -> None:
    volume = VOLUME.with_array((VOLUME.array % 7).astype(dtype))
    write_volume(tmp_path / name, volume)
    back = read_volume(tmp_path / name)
    assert back.array.dtype == ("uint8" if dtype == "bool" else dtype)
    np.testing.assert_array_equal(back.array, volume.array)


def test_paths_that_are_not_regular_files_are_rejected(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.nii")
    (tmp_path / "folder.nii").mkdir()
    (tmp_path / "dangling.nii").symlink_to(tmp_path / "none")
    (tmp_path / "loop.nii").symlink_to(tmp_path / "loop.nii")
    (tmp_path / "file").touch()
    expected = {
        "pipe.nii": (VolumeError, "a pipe"),
        "folder.nii": (VolumeError, "a folder"),
        "/dev/null": (VolumeError, "device"),
        "dangling.nii": (NotFoundError, "no such file"),
        "loop.nii": (VolumeError, "symbolic links"),
        "none.nii": (NotFoundError, "no such file"),
        "file/a.nii": (NotFoundError, "no such file"),
        "n" * 300: (VolumeError, "too long"),
        "nul\0.nii": (VolumeError, "null"),
    }
    for name, (kind, words) in expected.items():
        with pytest.raises(kind) as caught:
            read_volume(tmp_path / name)
        assert words in str(caught.value)


def test_symbolic_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "a.nii").write_bytes(CONTENTS["nii"])
    (tmp_path / "b.nii").symlink_to("a.nii")
    _same(read_volume(tmp_path / "b.nii"))


def test_unreadable_file_is_rejected(tmp_path: Path) -> None:
    path = tmp_path / "a.nii"
    path.write_bytes(CONTENTS["nii"])
    path.chmod(0)
    try:
        os.close(os.open(path, os.O_RDONLY))
    except PermissionError:
        pass
    else:
        pytest.skip("this user may read any file")
    with pytest.raises(VolumeError, match="cannot be opened"):
        read_volume(path)


@pytest.mark.parametrize(
    ("start", "found"),
    [
        (b"", "an empty file"),
        (b"\xff\x01", "beginning ff 01"),
        (b"PK\x03\x04 and more", "zip"),
        (b"BZh9 and more", "bzip2"),
        (b"ObjectType = Image", "MetaImage"),
        (b"NRR", "text"),
        (b"<!DOCTYPE html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1", "Git LFS"),
        (bytes(128) + b"DICM\2\0", "a DICOM file"),
        (bytes(400), "beginning 00 00"),
        (gzip.compress(b"", mtime=0), "an empty or truncated gzip stream"),
        (gzip.compress(gzip.compress(CONTENTS["nii"]), mtime=0), "a gzip stream of a gzip stream"),
    ],
)
def test_other_formats_are_named(start: bytes, found: str) -> None:
    for decode in (decode_volume, decode_nifti):
        with pytest.raises(VolumeError, match="not a NIfTI") as caught:
            decode(start, "scan")
        assert found in caught.value.fields["found"]
        assert caught.value.fields["where"] == "scan"


def test_decode_nifti_rejects_nrrd() -> None:
    _same(decode_nifti(CONTENTS["nii.gz"]))
    with pytest.raises(VolumeError, match="not a NIfTI file"):
        decode_nifti(CONTENTS["nrrd"])


@pytest.mark.parametrize("form", CONTENTS)
def test_limit_applies_to_the_decompressed_size(form: str) -> None:
    _same(decode_volume(CONTENTS[form], limit_bytes=420))
    with pytest.raises(TooLargeError):
        decode_volume(CONTENTS[form], limit_bytes=419)
