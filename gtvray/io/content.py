"""What a file or an HTTP body is, judged by its first bytes, and how to turn it into a volume that can be read."""

from __future__ import annotations

import base64
import binascii
import re
import zlib
from dataclasses import dataclass
from enum import StrEnum

# Enough for every signature below: a tar header has its magic at byte 257, a NIfTI-2 header is 540 bytes long.
HEAD_BYTES = 4096


class ContentKind(StrEnum):
    """Kinds of content that are told apart."""

    NIFTI = "nifti"
    NIFTI_GZ = "nifti_gz"
    NRRD = "nrrd"
    NIFTI_PAIR = "nifti_pair"
    NRRD_DETACHED = "nrrd_detached"
    METAIMAGE = "metaimage"
    DICOM = "dicom"
    ZIP = "zip"
    TAR = "tar"
    GZIP = "gzip"
    OTHER_ARCHIVE = "other_archive"
    MULTIPART = "multipart"
    FORM = "form"
    BASE64 = "base64"
    ALTERED = "altered"
    JSON = "json"
    HTML = "html"
    PICTURE = "picture"
    TEXT = "text"
    EMPTY = "empty"
    OTHER = "other"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Content:
    """What some bytes are.

    Attributes:
        kind: for programs.
        name: for people, with its article, such as "a zip archive".
        hint: how to convert or send it so that it can be read; empty for a volume file that can be read as it is.
    """

    kind: ContentKind
    name: str
    hint: str = ""

    @property
    def readable(self) -> bool:
        """Whether these are the first bytes of a volume file of a supported format."""
        return self.kind in _READABLE


_READABLE = frozenset({ContentKind.NIFTI, ContentKind.NIFTI_GZ, ContentKind.NRRD})
_SEND = "send the bytes of the file alone as the body, for example: curl --data-binary @scan.nii.gz URL"
_UNPACK = "unpack it and use the NIfTI (.nii, .nii.gz) or NRRD file inside"
_CONVERT = "save the volume as .nii.gz, for example with 3D Slicer or SimpleITK"
_WRONG_FILE = "use the volume itself, a .nii, .nii.gz or .nrrd file"

_NIFTI_SIZES = {n.to_bytes(4, order): n for n in (348, 540) for order in ("little", "big")}
_SIGNATURES = (
    (b"PK\x03\x04", Content(ContentKind.ZIP, "a zip archive", _UNPACK)),
    (b"PK\x05\x06", Content(ContentKind.ZIP, "an empty zip archive", _WRONG_FILE)),
    (b"BZh", Content(ContentKind.OTHER_ARCHIVE, "a bzip2 stream", _UNPACK)),
    (b"\xfd7zXZ", Content(ContentKind.OTHER_ARCHIVE, "an xz stream", _UNPACK)),
    (b"\x28\xb5\x2f\xfd", Content(ContentKind.OTHER_ARCHIVE, "a zstandard stream", _UNPACK)),
    (b"7z\xbc\xaf\x27\x1c", Content(ContentKind.OTHER_ARCHIVE, "a 7-Zip archive", _UNPACK)),
    (b"Rar!\x1a", Content(ContentKind.OTHER_ARCHIVE, "a RAR archive", _UNPACK)),
    (b"\x89PNG", Content(ContentKind.PICTURE, "a PNG picture", _WRONG_FILE)),
    (b"\xff\xd8\xff", Content(ContentKind.PICTURE, "a JPEG picture", _WRONG_FILE)),
    (b"GIF8", Content(ContentKind.PICTURE, "a GIF picture", _WRONG_FILE)),
    (b"II*\0", Content(ContentKind.PICTURE, "a TIFF picture", _WRONG_FILE)),
    (b"MM\0*", Content(ContentKind.PICTURE, "a TIFF picture", _WRONG_FILE)),
    (b"%PDF", Content(ContentKind.OTHER, "a PDF document", _WRONG_FILE)),
    (b"\x89HDF", Content(ContentKind.OTHER, "an HDF5 file", _CONVERT)),
    (b"CDF\x01", Content(ContentKind.OTHER, "a netCDF file, perhaps MINC", _CONVERT)),
    (b"\x93NUMPY", Content(ContentKind.OTHER, "a NumPy array, which does not say where its voxels are", _CONVERT)),
    (b"MZ", Content(ContentKind.OTHER, "a Windows program", _WRONG_FILE)),
    (b"\x7fELF", Content(ContentKind.OTHER, "a program", _WRONG_FILE)),
    (
        b"\x00\x05\x16\x07",
        Content(ContentKind.OTHER, "an AppleDouble file, which macOS leaves beside others (._NAME)", _WRONG_FILE),
    ),
)
_DICOM_CLASSES = (
    (b"1.2.840.10008.5.1.4.1.1.481.3", "a DICOM RTSTRUCT file (contours)"),
    (b"1.2.840.10008.5.1.4.1.1.481.2", "a DICOM RTDOSE file"),
    (b"1.2.840.10008.5.1.4.1.1.66.4", "a DICOM SEG file (segmentation)"),
    (b"1.2.840.10008.1.3.10", "a DICOMDIR, the index of a DICOM folder"),
)
_DICOM_HINT = "convert the DICOM series to NIfTI, for example: dcm2niix -z y -o OUT FOLDER"
_DICOM_HINT_OBJECT = "export it as a NIfTI or NRRD volume on the grid of its scan, for example with 3D Slicer"
# Data elements of groups 0002 and 0008, with which a DICOM file without its preamble begins, in both byte orders.
_BARE_DICOM = re.compile(rb"[\x02\x08]\x00.\x00|\x00[\x02\x08]\x00.", re.DOTALL)
_VR = re.compile(rb"AE|AS|AT|CS|DA|DS|DT|FD|FL|IS|LO|LT|OB|OW|PN|SH|SL|SQ|SS|ST|TM|UI|UL|UN|US|UT")
_MULTIPART = re.compile(
    rb"(?:\r?\n)?--[^\r\n]{1,200}\r?\n(?:[^\r\n]{1,300}\r?\n){0,4}?content-(?:disposition|type):", re.IGNORECASE
)
_FORM = re.compile(rb"[\w.*%+-]{1,200}=[\w.*%+/-]*(?:&[\w.*%+-]{1,200}=[\w.*%+/-]*)*={0,2}")
_BASE64 = re.compile(rb"(?:data:[\w/.+;=-]{0,100};base64,)?([A-Za-z0-9+/_\r\n-]+)={0,2}\s*")
_BASE64_LEAST = 16
_DATA_FILE = re.compile(rb"^data ?file\s*:(?!=)", re.IGNORECASE | re.MULTILINE)
_METAIMAGE = re.compile(rb"\s*(?:ObjectType|NDims|Comment)\s*=")
_METAIMAGE_FIELD = re.compile(rb"^\s*(?:NDims|DimSize|ElementDataFile)\s*=", re.MULTILINE)
_JSON = re.compile(rb'\{\s*["}]|\[\s*["\[{\]\d-]')
_HTML = re.compile(rb"<(?:!doctype html|html|head|body)", re.IGNORECASE)
_BOMS = (b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")


def identify(head: bytes) -> Content:
    """Identify a file or an HTTP body by its first bytes.

    Args:
        head: the first `HEAD_BYTES` bytes, or all there are. Fewer may leave the answer less exact. Bytes after
            these are not looked at.
    """
    return _identify(head[:HEAD_BYTES], nested=False)


def _identify(head: bytes, *, nested: bool) -> Content:
    if not head:
        return Content(ContentKind.EMPTY, "empty", "it has no bytes: export or transfer it again")
    if head.startswith(b"\x1f\x8b"):
        return _gzip(head, nested=nested)
    known = _volume(head) or _dicom(head)
    if known is not None:
        return known
    if head[257:262] == b"ustar":
        return Content(ContentKind.TAR, "a tar archive", _UNPACK)
    for start, content in _SIGNATURES:
        if head.startswith(start):
            return content
    return _text(head, nested=nested) or Content(
        ContentKind.UNKNOWN, f"bytes of an unknown format, beginning {head[:8].hex(' ')}", _WRONG_FILE
    )


def _gzip(head: bytes, *, nested: bool) -> Content:
    try:
        inflated = zlib.decompressobj(wbits=31).decompress(head, HEAD_BYTES)
    except zlib.error:
        hint = "export or transfer it again; curl changes a body with -d or --data, send it with --data-binary"
        return Content(ContentKind.ALTERED, "a damaged gzip stream", hint)
    if nested:
        return Content(ContentKind.GZIP, "a gzip stream", _UNPACK)
    if not inflated:
        return Content(ContentKind.GZIP, "a gzip stream of nothing, or cut off", "export or transfer it again")
    inner = _identify(inflated, nested=True)
    if inner.kind is ContentKind.NIFTI:
        return Content(ContentKind.NIFTI_GZ, f"{inner.name}, gzipped")
    if inner.kind is ContentKind.NRRD:
        return Content(ContentKind.NRRD, f"{inner.name}, gzipped")
    return Content(ContentKind.GZIP, f"a gzip stream of {inner.name}", f"unpack it, then: {inner.hint}")


def _volume(head: bytes) -> Content | None:
    """NIfTI, Analyze, NRRD or MetaImage."""
    found = _nifti(head)
    if found is None and head.startswith(b"NRRD0"):
        found = Content(ContentKind.NRRD, "an NRRD file")
        if _DATA_FILE.search(re.split(rb"\r?\n\r?\n", head)[0]):
            do = "save header and voxels together as one .nrrd or .nii.gz file"
            found = Content(ContentKind.NRRD_DETACHED, "an NRRD header whose voxels are in another file", do)
    if found is None and _METAIMAGE.match(head) and _METAIMAGE_FIELD.search(head):
        found = Content(ContentKind.METAIMAGE, "a MetaImage file (.mha, .mhd)", _CONVERT)
    return found


def _nifti(head: bytes) -> Content | None:
    size = _NIFTI_SIZES.get(head[:4])
    if size is not None:
        magic = head[344:348] if size == 348 else head[4:8]
        if magic[:3] in (b"ni1", b"ni2") or (size == 348 and len(magic) == 4 and magic[:2] != b"n+"):
            name = "the header of a NIfTI pair" if magic[:2] == b"ni" else "an Analyze 7.5 header"
            do = "save header (.hdr) and voxels (.img) together as one .nii.gz file, for example with nibabel"
            return Content(ContentKind.NIFTI_PAIR, f"{name}, without its voxels", do)
        return Content(ContentKind.NIFTI, f"a NIfTI-{1 if size == 348 else 2} file")
    # A body that lost its NUL bytes or line breaks on the way keeps the magic, though no longer at its place.
    if head[:2] in (b"\x5c\x01", b"\x01\x5c") and re.search(rb"n[+i]1", head[:348]):
        hint = "transfer it again as binary; with curl use --data-binary, as -d and --data remove bytes"
        return Content(ContentKind.ALTERED, "a NIfTI file that was altered on the way", hint)
    return None


def _dicom(head: bytes) -> Content | None:
    """DICOM with its preamble, or from its first data element on."""
    with_preamble = head[128:132] == b"DICM"
    if not with_preamble and not (_BARE_DICOM.match(head) and _plausible_element(head)):
        return None
    name = next((name for uid, name in _DICOM_CLASSES if uid in head), "")
    if name:
        hint = _DICOM_HINT if "DICOMDIR" in name else _DICOM_HINT_OBJECT
        return Content(ContentKind.DICOM, name, hint)
    return Content(ContentKind.DICOM, f"a DICOM file{'' if with_preamble else ' without its preamble'}", _DICOM_HINT)


def _plausible_element(head: bytes) -> bool:
    if _VR.match(head, 4):
        return True
    # Implicit VR: the length, which is even, follows, and the text of a group length or an identifier is short.
    length = int.from_bytes(head[4:8], "little")
    return len(head) > 8 and head[1] == 0 and 0 < length <= 128 and length % 2 == 0


def _text(head: bytes, *, nested: bool) -> Content | None:
    """A form, base64, JSON, HTML or other text."""
    found: Content | None = None
    content = head.removeprefix(_BOMS[0]).lstrip()
    if _MULTIPART.match(head):
        found = Content(ContentKind.MULTIPART, "a multipart form (curl -F)", _SEND)
    elif head.startswith(_BOMS[1:]):
        found = Content(ContentKind.TEXT, "text in UTF-16", _WRONG_FILE)
    elif _HTML.match(content):
        found = Content(ContentKind.HTML, "an HTML page, perhaps an error or a log-in page", "download the file again")
    elif _is_text(head):
        found = (None if nested else _base64(content)) or _plain_text(content)
    return found


def _plain_text(content: bytes) -> Content:
    if _FORM.fullmatch(content.rstrip()):
        return Content(ContentKind.FORM, "a URL-encoded form (curl -d)", _SEND)
    if _JSON.match(content):
        return Content(ContentKind.JSON, "JSON", f"if it holds a volume, decode it; {_SEND}")
    if content.startswith(b"version https://git-lfs"):
        return Content(ContentKind.TEXT, "a pointer to a file in Git LFS", "fetch the file itself: git lfs pull")
    return Content(ContentKind.TEXT, "XML" if content.startswith(b"<?xml") else "text", _WRONG_FILE)


def _base64(text: bytes) -> Content | None:
    """Base64 text, if what it holds is known and is more than text."""
    match = _BASE64.match(text)
    if match is None or match.end() != len(text):
        return None
    digits = re.sub(rb"\s", b"", match[1]).translate(bytes.maketrans(b"-_", b"+/"))
    if len(digits) < _BASE64_LEAST:
        return None
    try:
        inner = _identify(base64.b64decode(digits[: len(digits) // 4 * 4]), nested=False)
    except binascii.Error:
        return None
    if inner.kind in {ContentKind.UNKNOWN, ContentKind.TEXT, ContentKind.FORM}:
        return None
    return Content(ContentKind.BASE64, f"base64 text of {inner.name}", f"decode it; {_SEND}")


def _is_text(head: bytes) -> bool:
    if re.search(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f]", head):
        return False
    try:
        head.decode()
    except UnicodeDecodeError as error:
        # A character cut in two at the end of the head.
        return error.start >= len(head) - 3 and len(head) >= HEAD_BYTES
    return True
