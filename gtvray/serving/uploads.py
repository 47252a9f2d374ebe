"""Uploads: the upload spool, and early rejection of bodies and files that are not volumes."""

from __future__ import annotations

import re
from typing import IO

from starlette.datastructures import Headers
from starlette.requests import Request

from gtvray.errors import ContentTypeError, InputError, TooLargeError, VolumeError
from gtvray.io import HEAD_BYTES, Content, ContentKind, identify

_FORMATS = "NIfTI (.nii, .nii.gz) or NRRD (.nrrd) file"
EXPECTED = f"one {_FORMATS} as the raw request body"
CURL = (
    'curl --fail-with-body -H "Authorization: Bearer $GTVRAY_TOKEN" --data-binary @scan.nii.gz -o mask.nii.gz '
    "URL/v1/segment"
)
_WRONG_TRANSFER = frozenset(
    {ContentKind.MULTIPART, ContentKind.FORM, ContentKind.BASE64, ContentKind.JSON, ContentKind.ALTERED}
)
# Damaged or unrecognised content (422); every other kind is a known format that is not supported (415).
_INVALID = frozenset({ContentKind.ALTERED, ContentKind.EMPTY, ContentKind.TEXT, ContentKind.UNKNOWN, ContentKind.GZIP})
_SUPPORTED_ENCODINGS = frozenset({"", "identity", "gzip", "x-gzip"})
_VOLUME_STARTS = (b"\x1f\x8b", b"\x5c\x01", b"\x01\x5c", b"NRRD")
_REMOVED_BY_CURL = re.compile(rb"[\0\r\n]")


async def spool_upload(request: Request, file: IO[bytes], limit_bytes: int) -> None:
    """Write a request's body to a file of the upload spool as it arrives, checking its first bytes and its size.

    Raises:
        TooLargeError: the body exceeds the limit; if its Content-Length says so, nothing is read.
        ContentTypeError: the headers or the first bytes are those of another known format.
        VolumeError: the first bytes are of no known format, or were altered in transfer.
        InputError: the body is empty.
    """
    too_large = TooLargeError("the upload is too large", expected=f"at most {limit_bytes} bytes", do="crop the scan")
    declared = request.headers.get("content-length", "0")
    if not declared.isdecimal() or int(declared) > limit_bytes:
        raise too_large
    check_headers(request.headers)
    size, head = 0, b""
    async for chunk in request.stream():
        size += len(chunk)
        if size > limit_bytes:
            raise too_large
        if len(head) < HEAD_BYTES:
            head += chunk[: HEAD_BYTES - len(head)]
            if len(head) == HEAD_BYTES:
                check_body(head)
        file.write(chunk)
    if not size:
        raise InputError("the request has no body", expected=EXPECTED, do=CURL)
    if len(head) < HEAD_BYTES:
        check_body(head)


def check_headers(headers: Headers) -> None:
    """Reject a body by its headers, before any of it is read.

    Raises:
        ContentTypeError: a multipart form, or an unsupported Content-Encoding.
    """
    media_type = headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type.startswith("multipart/"):
        raise ContentTypeError(
            "the body is a form, not a volume file", expected=EXPECTED, found="a multipart form (curl -F)", do=CURL
        )
    if headers.get("content-encoding", "").strip().lower() not in _SUPPORTED_ENCODINGS:
        raise ContentTypeError(
            "the body's Content-Encoding is not supported", expected="none, or an unmodified .nii.gz file", do=CURL
        )


def check_body(head: bytes) -> None:
    """Reject a body by its first bytes.

    Args:
        head: the first `gtvray.io.HEAD_BYTES` bytes, or the complete body if it is shorter.

    Raises:
        ContentTypeError: another known format.
        VolumeError: no known format, or altered in transfer.
    """
    content = _identify(head)
    if not content.readable:
        do = CURL if content.kind in _WRONG_TRANSFER else f"{content.hint}; then {CURL}"
        if content.kind is ContentKind.ALTERED:
            do = f"{CURL} (curl -d and --data remove bytes)"
        raise _error(content, "upload", EXPECTED, do)


def check_file(head: bytes, where: object) -> None:
    """Reject a file by its first bytes before it is sent; raises as `check_body`."""
    content = _identify(head)
    if not content.readable:
        raise _error(content, where, f"a {_FORMATS}", content.hint)


def _identify(head: bytes) -> Content:
    # A gzip, NIfTI or NRRD header always contains one of the bytes that `curl -d` removes.
    if head.startswith(_VOLUME_STARTS) and len(head) >= 64 and not _REMOVED_BY_CURL.search(head):
        name = "a volume file whose NUL bytes and line breaks were removed"
        return Content(ContentKind.ALTERED, name, "transfer it again in binary mode")
    return identify(head)


def _error(content: Content, where: object, expected: str, do: str) -> InputError:
    kind = VolumeError if content.kind in _INVALID else ContentTypeError
    what = "not a NIfTI or NRRD file" if content.kind is not ContentKind.ALTERED else "the file was altered in transfer"
    return kind(what, where=where, expected=expected, found=content.name, do=do)
