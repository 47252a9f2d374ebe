"""An upload on its way from the wire to the disk, counted and looked at as it comes."""

from __future__ import annotations

from typing import IO

from starlette.requests import Request

from gtvray.errors import InputError, TooLargeError
from gtvray.io import HEAD_BYTES
from gtvray.serving.uploads import CURL, EXPECTED, check_body, check_headers


async def spool_body(request: Request, file: IO[bytes], limit_bytes: int) -> None:
    """Write a request's body to a file.

    Raises:
        TooLargeError: it says, or proves, to be over the limit; nothing is read if it says so.
        ContentTypeError: its headers or its first bytes are not those of a volume file.
        VolumeError: its first bytes are those of nothing that is known.
        InputError: it is empty.
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
