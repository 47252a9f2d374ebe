"""Uploads: writing bodies to the upload spool, and early rejection of bodies and files that are not volumes."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, NamedTuple

from starlette.datastructures import Headers
from starlette.requests import Request

from gtvray.errors import ContentTypeError, InputError, SlowBodyError, TooLargeError, VolumeError
from gtvray.io import HEAD_BYTES, Content, ContentKind, identify

if TYPE_CHECKING:
    from gtvray.serving.transfer.spool import Body, SpoolFile

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

# From these first bytes of a larger body the header is checked while the rest arrives.
BEGINNING_BYTES = 64 << 10
# Seconds that a client may pause without sending a byte.
PATIENCE_S = 10.0


class UploadLimits(NamedTuple):
    """Limits of a request body.

    Attributes:
        most_bytes: maximum size.
        least_bytes_s: minimum rate in bytes per second, as a mean over PATIENCE_S; slower bodies are rejected.
    """

    most_bytes: int
    least_bytes_s: int


def check_declared(headers: Headers, limits: UploadLimits) -> int:
    """Reject a body by the headers of its request, before any of it is read.

    Returns:
        the declared size; 0 if there is none.

    Raises:
        TooLargeError: the declared size exceeds the limit.
        ContentTypeError: a multipart form, or an unsupported Content-Encoding.
    """
    declared = headers.get("content-length", "0")
    if not declared.isdecimal() or int(declared) > limits.most_bytes:
        raise _too_large(limits)
    check_headers(headers)
    return int(declared)


async def spool_upload(
    request: Request, file: SpoolFile, limits: UploadLimits, check: Callable[[bytes], None] = lambda _: None
) -> Body:
    """Write a request's body to a file of the upload spool as it arrives, checking first bytes, size and rate.

    Args:
        request: the request.
        file: the file.
        limits: limits of the body.
        check: called in a thread with the first BEGINNING_BYTES of a body that has so many; raises to refuse it.

    Raises:
        GtvrayError: as `check`.
        TooLargeError: the body exceeds the limit.
        SlowBodyError: the body arrives too slowly.
        ContentTypeError: the first bytes are those of another known format.
        VolumeError: the first bytes are of no known format, or were altered in transfer.
        InputError: the body is empty.
        ClientLimitError, BusyError: the client's share of the spool, or the spool, is full.
        StorageFullError: the disk is full.
    """
    size, head = 0, b""
    async for chunk in body_chunks(request, limits):
        size += len(chunk)
        if size > limits.most_bytes:
            raise _too_large(limits)
        if (known := len(head)) < BEGINNING_BYTES:
            head += chunk[: BEGINNING_BYTES - known]
            if known < HEAD_BYTES <= len(head):
                check_body(head)
            if len(head) == BEGINNING_BYTES:
                await asyncio.to_thread(check, head)
        await file.write(chunk)
    if not size:
        raise InputError("the request has no body", expected=EXPECTED, do=CURL)
    if len(head) < HEAD_BYTES:
        check_body(head)
    return await file.finish()


async def body_chunks(request: Request, limits: UploadLimits) -> AsyncIterator[bytes]:
    """Yield the chunks of a body. Only the time spent waiting for the client counts against its rate.

    Raises:
        SlowBodyError: the body arrives too slowly.
    """
    credit_s, stream = PATIENCE_S, request.stream()
    while True:
        began = time.monotonic()
        try:
            async with asyncio.timeout(credit_s):
                chunk = await anext(stream, None)
        except TimeoutError:
            raise SlowBodyError(
                "the body arrives too slowly",
                expected=f"at least {limits.least_bytes_s} bytes per second",
                do="send the scan over a faster connection, or compress it",
            ) from None
        if chunk is None:
            return
        earned_s = len(chunk) / limits.least_bytes_s
        credit_s = min(PATIENCE_S, credit_s - (time.monotonic() - began) + earned_s)
        yield chunk


def _too_large(limits: UploadLimits) -> TooLargeError:
    return TooLargeError("the upload is too large", expected=f"at most {limits.most_bytes} bytes", do="crop the scan")


def media_type_of(headers: Headers) -> str:
    """The media type of a body, without parameters; empty if its headers state none."""
    return headers.get("content-type", "").partition(";")[0].strip().lower()


def check_headers(headers: Headers) -> None:
    """Reject a body by its headers, before any of it is read.

    Raises:
        ContentTypeError: a multipart form, or an unsupported Content-Encoding.
    """
    if media_type_of(headers).startswith("multipart/"):
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
