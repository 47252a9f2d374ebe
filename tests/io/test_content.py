"""Files and uploads are identified by their first bytes, with a hint how to make them readable."""

from __future__ import annotations

import base64
import gzip
import io
import json
import struct
import tarfile
import zipfile
from pathlib import Path

import nibabel
import numpy as np
import pytest

from gtvray.geometry import Volume
from gtvray.io import HEAD_BYTES, ContentKind, encode_nifti, encode_nrrd, identify

VOLUME = Volume(np.arange(-100, 110, dtype=np.int16).reshape(5, 6, 7), np.diag([1.0, 1.0, 2.5, 1.0]))
NIFTI = encode_nifti(VOLUME, compress=False)
NIFTI_GZ = encode_nifti(VOLUME, compress=True)
NRRD = encode_nrrd(VOLUME)


def _zip() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("scan.nii.gz", NIFTI_GZ)
    return file.getvalue()


def _tar() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        entry = tarfile.TarInfo("scan.nii.gz")
        entry.size = len(NIFTI_GZ)
        archive.addfile(entry, io.BytesIO(NIFTI_GZ))
    return file.getvalue()


def _nifti2() -> bytes:
    return bytes(nibabel.Nifti2Image(np.zeros((2, 2, 2), np.int16), np.eye(4)).to_bytes())


def _multipart(content: bytes) -> bytes:
    head = b'--------------------------d74496d66958873e\r\nContent-Disposition: form-data; name="file"; '
    return head + b'filename="scan.nii.gz"\r\nContent-Type: application/octet-stream\r\n\r\n' + content + b"\r\n--\r\n"


def _analyze() -> bytes:
    return NIFTI[:344] + bytes(4) + NIFTI[348:]


DICOM_PREAMBLE = bytes(128) + b"DICM\x02\x00\x00\x00UL\x04\x00\xc8\x00\x00\x00"
DICOM_BARE = b"\x08\x00\x05\x00CS\x0a\x00ISO_IR 100\x08\x00\x08\x00CS"
DICOM_IMPLICIT = b"\x08\x00\x00\x00\x04\x00\x00\x00\x62\x01\x00\x00\x08\x00\x05\x00"
DETACHED = b"NRRD0004\ntype: short\ndimension: 3\ndata file: scan.raw\n"
METAIMAGE = b"ObjectType = Image\nNDims = 3\nBinaryData = True\nElementDataFile = LOCAL\n\x00\x01"
JSON = json.dumps({"scan": base64.b64encode(NIFTI_GZ).decode()}).encode()

CASES: dict[str, tuple[bytes, ContentKind, str]] = {
    "NIfTI-1": (NIFTI, ContentKind.NIFTI, "NIfTI-1"),
    "NIfTI-1 big-endian": (struct.pack(">i", 348) + NIFTI[4:], ContentKind.NIFTI, "NIfTI-1"),
    "NIfTI-2": (_nifti2(), ContentKind.NIFTI, "NIfTI-2"),
    "NIfTI gzipped": (NIFTI_GZ, ContentKind.NIFTI_GZ, "NIfTI-1 file, gzipped"),
    "NIfTI-2 gzipped": (gzip.compress(_nifti2(), mtime=0), ContentKind.NIFTI_GZ, "NIfTI-2 file, gzipped"),
    "header of a pair": (NIFTI[:344] + b"ni1\0", ContentKind.NIFTI_PAIR, "header of a NIfTI pair"),
    "Analyze": (_analyze(), ContentKind.NIFTI_PAIR, "Analyze"),
    "NRRD": (NRRD, ContentKind.NRRD, "NRRD"),
    "detached NRRD": (DETACHED, ContentKind.NRRD_DETACHED, "another file"),
    "MetaImage": (METAIMAGE, ContentKind.METAIMAGE, "MetaImage"),
    "DICOM": (DICOM_PREAMBLE, ContentKind.DICOM, "DICOM file"),
    "DICOM without preamble": (DICOM_BARE, ContentKind.DICOM, "without its preamble"),
    "DICOM implicit": (DICOM_IMPLICIT, ContentKind.DICOM, "without its preamble"),
    "RTSTRUCT": (DICOM_PREAMBLE + b"1.2.840.10008.5.1.4.1.1.481.3\0", ContentKind.DICOM, "RTSTRUCT"),
    "zip": (_zip(), ContentKind.ZIP, "zip archive"),
    "tar": (_tar(), ContentKind.TAR, "tar archive"),
    "tar.gz": (gzip.compress(_tar(), mtime=0), ContentKind.GZIP, "gzip stream of a tar archive"),
    "gzipped DICOM": (gzip.compress(DICOM_PREAMBLE, mtime=0), ContentKind.GZIP, "of a DICOM file"),
    "gzipped twice": (gzip.compress(NIFTI_GZ, mtime=0), ContentKind.GZIP, "of a gzip stream"),
    "xz": (b"\xfd7zXZ\0", ContentKind.OTHER_ARCHIVE, "xz"),
    "curl -F": (_multipart(NIFTI_GZ), ContentKind.MULTIPART, "multipart form"),
    "curl -d of fields": (b"case=12&scan=H4sIAAAA%2B", ContentKind.FORM, "URL-encoded form"),
    "curl -d @scan.nii": (NIFTI.replace(b"\0", b""), ContentKind.ALTERED, "altered"),
    "curl -d @scan.nii.gz": (b"\x1f\x8b\x08\xff\xff" + bytes(range(255)) * 8, ContentKind.ALTERED, "damaged gzip"),
    "base64 of NIfTI": (base64.b64encode(NIFTI), ContentKind.BASE64, "base64 text of a NIfTI-1 file"),
    "base64 of gzip": (base64.encodebytes(NIFTI_GZ), ContentKind.BASE64, "NIfTI-1 file, gzipped"),
    "data URL": (
        b"data:application/octet-stream;base64," + base64.b64encode(NIFTI_GZ),
        ContentKind.BASE64,
        "NIfTI-1 file, gzipped",
    ),
    "JSON": (JSON, ContentKind.JSON, "JSON"),
    "JSON with a byte-order mark": (b"\xef\xbb\xbf" + JSON, ContentKind.JSON, "JSON"),
    "HTML": (b"\r\n<!DOCTYPE html><html><body>Sign in</body></html>", ContentKind.HTML, "web page"),
    "XML": (b'<?xml version="1.0"?><Error/>', ContentKind.TEXT, "XML"),
    "PNG": (b"\x89PNG\r\n\x1a\n", ContentKind.PICTURE, "PNG"),
    "JPEG": (b"\xff\xd8\xff\xe0\x00\x10JFIF", ContentKind.PICTURE, "JPEG"),
    "Git LFS": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", ContentKind.TEXT, "Git LFS"),
    "text": ("Größe der Läsion\n".encode(), ContentKind.TEXT, "text"),
    "UTF-16": ("scan".encode("utf-16"), ContentKind.TEXT, "UTF-16"),
    "empty": (b"", ContentKind.EMPTY, "empty"),
    "noise": (bytes([200, 3, 0, 255] * 90), ContentKind.UNKNOWN, "c8 03 00 ff"),
    "AppleDouble": (b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X", ContentKind.OTHER, "AppleDouble"),
}


@pytest.mark.parametrize("case", CASES)
def test_content_is_identified(case: str) -> None:
    body, kind, words = CASES[case]
    found = identify(body[:HEAD_BYTES])
    assert found.kind is kind, found
    assert words in found.name
    assert found.readable == (not found.hint)
    # Further bytes are ignored.
    assert identify(body) == found


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (_multipart(NIFTI_GZ), "--data-binary"),
        (DICOM_PREAMBLE, "dcm2niix"),
        (_zip(), "unpack"),
        (gzip.compress(DICOM_PREAMBLE, mtime=0), "unpack it, then: convert the DICOM series"),
        (base64.b64encode(NIFTI), "decode"),
        (NIFTI.replace(b"\0", b""), "--data-binary"),
    ],
)
def test_hint_names_the_conversion(body: bytes, words: str) -> None:
    assert words in identify(body).hint


@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 100, 131, 200, 345, 347, 350])
@pytest.mark.parametrize("body", [NIFTI, NIFTI_GZ, NRRD, DICOM_PREAMBLE, METAIMAGE, _tar(), JSON])
def test_short_heads_are_identified(body: bytes, length: int) -> None:
    assert identify(body[:length]).name


def test_random_bytes_are_not_a_volume() -> None:
    rng = np.random.default_rng(7)
    for _ in range(2000):
        assert not identify(rng.bytes(400)).readable


def test_real_dicom_files_are_identified(shared_data: Path) -> None:
    folder = shared_data / "oddities"
    for path in folder.rglob("*.dcm"):
        assert identify(path.read_bytes()[:HEAD_BYTES]).kind is ContentKind.DICOM, path.name
    contours = folder / "rtstruct_breast_tps_one_ct_slice" / "rtss.dcm"
    assert "RTSTRUCT" in identify(contours.read_bytes()).name
    assert identify((folder / "dicom_missing_slice_ge.zip").read_bytes()).kind is ContentKind.ZIP
    assert identify((folder / "derived" / "base.nii.gz").read_bytes()).readable
