"""Bodies and files that are no volume: recognised before anything else, with what was sent and how to send it right."""

from __future__ import annotations

import re

from starlette.datastructures import Headers

from gtvray.errors import ContentTypeError, InputError, VolumeError
from gtvray.io import Content, ContentKind, identify

_FORMATS = "NIfTI (.nii, .nii.gz) or NRRD (.nrrd) file"
EXPECTED = f"one {_FORMATS}, its bytes alone as the body"
CURL = (
    'curl --fail-with-body -H "Authorization: Bearer $GTVRAY_TOKEN" --data-binary @scan.nii.gz -o mask.nii.gz '
    "URL/v1/predict"
)
_SENT_WRONGLY = frozenset(
    {ContentKind.MULTIPART, ContentKind.FORM, ContentKind.BASE64, ContentKind.JSON, ContentKind.ALTERED}
)
# Of these nobody can say more than that they are no sound volume; everything else is a format that is known.
_UNSOUND = frozenset({ContentKind.ALTERED, ContentKind.EMPTY, ContentKind.TEXT, ContentKind.UNKNOWN, ContentKind.GZIP})
_TAKEN_ENCODINGS = frozenset({"", "identity", "gzip", "x-gzip"})
_VOLUME_STARTS = (b"\x1f\x8b", b"\x5c\x01", b"\x01\x5c", b"NRRD")
_TRANSFER = "transfer it again, as binary"
_REMOVED_BY_CURL = re.compile(rb"[\0\r\n]")


def check_headers(headers: Headers) -> None:
    """Refuse a body by its headers, before any of it is read.

    Raises:
        ContentTypeError: a multipart form, or a body in an encoding that is not taken.
    """
    media_type = headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type.startswith("multipart/"):
        raise ContentTypeError(
            "the body is a form, not a volume", expected=EXPECTED, found="a multipart form (curl -F)", do=CURL
        )
    if headers.get("content-encoding", "").strip().lower() not in _TAKEN_ENCODINGS:
        raise ContentTypeError(
            "the body's Content-Encoding is not taken", expected="none, or a .nii.gz file as it is", do=CURL
        )


def check_body(head: bytes) -> None:
    """Refuse a body by its first bytes.

    Args:
        head: the first `gtvray.io.HEAD_BYTES` bytes, or all there are.

    Raises:
        ContentTypeError: it is something else that is known.
        VolumeError: it is no volume, or was altered on the way.
    """
    content = _identify(head)
    if not content.readable:
        do = CURL if content.kind in _SENT_WRONGLY else f"{content.hint}; then {CURL}"
        if content.kind is ContentKind.ALTERED:
            do = f"{CURL} (curl -d and --data remove bytes)"
        raise _error(content, "upload", EXPECTED, do)


def check_file(head: bytes, where: object) -> None:
    """Refuse a file by its first bytes, before it is sent; raises as `check_body`."""
    content = _identify(head)
    if not content.readable:
        raise _error(content, where, f"a {_FORMATS}", content.hint)


def _identify(head: bytes) -> Content:
    # A gzip, NIfTI or NRRD header always holds one of the bytes that `curl -d` removes.
    if head.startswith(_VOLUME_STARTS) and len(head) >= 64 and not _REMOVED_BY_CURL.search(head):
        return Content(ContentKind.ALTERED, "a volume file whose NUL bytes and line breaks were removed", _TRANSFER)
    return identify(head)


def _error(content: Content, where: object, expected: str, do: str) -> InputError:
    kind = VolumeError if content.kind in _UNSOUND else ContentTypeError
    what = "not a NIfTI or NRRD file" if content.kind is not ContentKind.ALTERED else "the file was altered on the way"
    return kind(what, where=where, expected=expected, found=content.name, do=do)
