"""Identification of files and HTTP bodies by their first bytes, with a hint how to make them readable."""

from __future__ import annotations

import base64
import binascii
import re
import zlib

from gtvray.io.content_kinds import CONVERT, SEND, SIGNATURES, UNPACK, WRONG_FILE, Content, ContentKind

# Enough for every signature below: a tar header has its magic at byte 257, a NIfTI-2 header is 540 bytes long.
HEAD_BYTES = 4096
_NIFTI_SIZES = {n.to_bytes(4, order): n for n in (348, 540) for order in ("little", "big")}
_DICOM_CLASSES = (
    (b"1.2.840.10008.5.1.4.1.1.481.3", "a DICOM RTSTRUCT file (contours)"),
    (b"1.2.840.10008.5.1.4.1.1.481.2", "a DICOM RTDOSE file"),
    (b"1.2.840.10008.5.1.4.1.1.66.4", "a DICOM SEG file (segmentation)"),
    (b"1.2.840.10008.1.3.10", "a DICOMDIR, the index of a DICOM folder"),
)
_DICOM_HINT = "convert the DICOM series to NIfTI, for example: dcm2niix -z y -o OUT FOLDER"
_DICOM_HINT_OBJECT = "export it as a NIfTI or NRRD volume on the grid of its scan, for example with 3D Slicer"
# A DICOM file without a preamble starts with a data element of group 0002 or 0008, in either byte order.
_BARE_DICOM = re.compile(rb"[\x02\x08]\x00.\x00|\x00[\x02\x08]\x00.", re.DOTALL)
_VR = re.compile(rb"AE|AS|AT|CS|DA|DS|DT|FD|FL|IS|LO|LT|OB|OW|PN|SH|SL|SQ|SS|ST|TM|UI|UL|UN|US|UT")
_MULTIPART = re.compile(
    rb"(?:\r?\n)?--[^\r\n]{1,200}\r?\n(?:[^\r\n]{1,300}\r?\n){0,4}?content-(?:disposition|type):", re.IGNORECASE
)
_FORM = re.compile(rb"[\w.*%+-]{1,200}=[\w.*%+/-]*(?:&[\w.*%+-]{1,200}=[\w.*%+/-]*)*={0,2}")
_BASE64 = re.compile(rb"(?:data:[\w/.+;=-]{0,100};base64,)?([A-Za-z0-9+/_\r\n-]+)={0,2}\s*")
_BASE64_LEAST = 16
_DATA_FILE = re.compile(rb"^data ?file\s*:(?!=)", re.IGNORECASE | re.MULTILINE)
_METAIMAGE = re.compile(rb"\s*(?:Comment\s*=[^\r\n]*\s+)?(?:ObjectType|NDims)\s*=")
_JSON = re.compile(rb'\{\s*["}]|\[\s*["\[{\]\d-]')
_HTML = re.compile(rb"<(?:!doctype html|html|head|body)", re.IGNORECASE)
_BOMS = (b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")


def identify(head: bytes) -> Content:
    """Identify a file or an HTTP body by its first bytes.

    Args:
        head: the first `HEAD_BYTES` bytes, or all if there are fewer; further bytes are ignored. With fewer bytes than
            available the result may be less specific.
    """
    return _identify(head[:HEAD_BYTES], nested=False)


def _identify(head: bytes, *, nested: bool) -> Content:
    if not head:
        return Content(ContentKind.EMPTY, "an empty file", "export or transfer it again")
    if head.startswith(b"\x1f\x8b"):
        return _gzip(head, nested=nested)
    known = _volume(head) or _dicom(head)
    if known is not None:
        return known
    if head[257:262] == b"ustar":
        return Content(ContentKind.TAR, "a tar archive", UNPACK)
    for start, content in SIGNATURES:
        if head.startswith(start):
            return content
    return _text(head, nested=nested) or Content(
        ContentKind.UNKNOWN, f"bytes of an unknown format, beginning {head[:8].hex(' ')}", WRONG_FILE
    )


def _gzip(head: bytes, *, nested: bool) -> Content:
    try:
        inflated = zlib.decompressobj(wbits=31).decompress(head, HEAD_BYTES)
    except zlib.error:
        hint = "export or transfer it again; with curl use --data-binary, because -d and --data change the body"
        return Content(ContentKind.ALTERED, "a damaged gzip stream", hint)
    if nested:
        return Content(ContentKind.GZIP, "a gzip stream", UNPACK)
    if not inflated:
        return Content(ContentKind.GZIP, "an empty or truncated gzip stream", "export or transfer it again")
    inner = _identify(inflated, nested=True)
    if inner.kind is ContentKind.NIFTI:
        return Content(ContentKind.NIFTI_GZ, f"{inner.name}, gzipped")
    if inner.kind is ContentKind.NRRD:
        return Content(ContentKind.NRRD, f"{inner.name}, gzipped")
    return Content(ContentKind.GZIP, f"a gzip stream of {inner.name}", f"unpack it, then: {inner.hint}")


def _volume(head: bytes) -> Content | None:
    """Identify NIfTI, Analyze, NRRD or MetaImage."""
    found = _nifti(head)
    if found is None and head.startswith(b"NRRD0"):
        found = Content(ContentKind.NRRD, "an NRRD file")
        if _DATA_FILE.search(re.split(rb"\r?\n\r?\n", head)[0]):
            do = "save header and voxels together as one .nrrd or .nii.gz file"
            found = Content(ContentKind.NRRD_DETACHED, "an NRRD header whose voxels are in another file", do)
    if found is None and _METAIMAGE.match(head):
        found = Content(ContentKind.METAIMAGE, "a MetaImage file (.mha, .mhd)", CONVERT)
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
    # A body that lost its NUL bytes or line breaks in transfer keeps the magic bytes, but at another offset.
    if head[:2] in (b"\x5c\x01", b"\x01\x5c") and re.search(rb"n[+i]1", head[:348]):
        hint = "transfer it again as binary; with curl use --data-binary, because -d and --data remove bytes"
        return Content(ContentKind.ALTERED, "a NIfTI file that was altered in transfer", hint)
    return None


def _dicom(head: bytes) -> Content | None:
    """Identify DICOM with or without its preamble."""
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
    # Implicit VR: an even length follows, which is small for a group length or an identifier.
    length = int.from_bytes(head[4:8], "little")
    return len(head) > 8 and head[1] == 0 and 0 < length <= 128 and length % 2 == 0


def _text(head: bytes, *, nested: bool) -> Content | None:
    """Identify a form, base64, JSON, HTML or other text."""
    found: Content | None = None
    content = head.removeprefix(_BOMS[0]).lstrip()
    if _MULTIPART.match(head):
        found = Content(ContentKind.MULTIPART, "a multipart form (curl -F)", SEND)
    elif head.startswith(_BOMS[1:]):
        found = Content(ContentKind.TEXT, "text in UTF-16", WRONG_FILE)
    elif _HTML.match(content):
        found = Content(
            ContentKind.HTML, "a web page (HTML), perhaps an error or a log-in page", "download the file again"
        )
    elif _is_text(head):
        found = (None if nested else _base64(content)) or _plain_text(content)
    return found


def _plain_text(content: bytes) -> Content:
    if _FORM.fullmatch(content.rstrip()):
        return Content(ContentKind.FORM, "a URL-encoded form (curl -d)", SEND)
    if _JSON.match(content):
        return Content(ContentKind.JSON, "JSON", f"if it holds a volume, decode it; {SEND}")
    if content.startswith(b"version https://git-lfs"):
        return Content(ContentKind.TEXT, "a pointer to a file in Git LFS", "fetch the file itself: git lfs pull")
    return Content(ContentKind.TEXT, "XML" if content.startswith(b"<?xml") else "text", WRONG_FILE)


def _base64(text: bytes) -> Content | None:
    """Identify base64 text if its decoded content is a known kind other than text."""
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
    return Content(ContentKind.BASE64, f"base64 text of {inner.name}", f"decode it; {SEND}")


def _is_text(head: bytes) -> bool:
    if re.search(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f]", head):
        return False
    try:
        head.decode()
    except UnicodeDecodeError as error:
        # A multi-byte character may be cut off at the end of the head.
        return error.start >= len(head) - 3 and len(head) >= HEAD_BYTES
    return True
