"""An upload on its way from the wire to the disk, counted as it comes."""

from __future__ import annotations

from typing import IO

from starlette.requests import Request

from gtvray.errors import InputError, TooLargeError


async def spool_body(request: Request, file: IO[bytes], limit_bytes: int) -> None:
    """Write a request's body to a file.

    Raises:
        TooLargeError: it says, or proves, to be over the limit; nothing is read if it says so.
        InputError: it is empty.
    """
    too_large = TooLargeError("the upload is too large", expected=f"at most {limit_bytes} bytes", do="crop the scan")
    declared = request.headers.get("content-length", "0")
    if not declared.isdecimal() or int(declared) > limit_bytes:
        raise too_large
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > limit_bytes:
            raise too_large
        file.write(chunk)
    if not size:
        raise InputError("the request has no body", expected="a NIfTI file (.nii or .nii.gz) as the body")
