"""What the OpenAPI document says beyond the routes' signatures: bodies, answers, errors and the token."""

from __future__ import annotations

from typing import Any

from fastapi import Security
from fastapi.security import HTTPBearer

from gtvray.serving.problems import MEDIA_TYPE

_BINARY = {"schema": {"type": "string", "format": "binary"}}
_TEXT = {"type": "string"}
_PROBLEM: dict[str, Any] = {
    "description": "problem document, RFC 9457",
    "content": {
        MEDIA_TYPE: {
            "schema": {
                "type": "object",
                "required": ["type", "title", "status"],
                "properties": {
                    **dict.fromkeys(("type", "title", "where", "expected", "found", "do", "instance"), _TEXT),
                    "status": {"type": "integer"},
                },
            }
        }
    },
}
ERRORS: dict[int | str, dict[str, Any]] = {"4XX": _PROBLEM, "5XX": _PROBLEM}
MASK: dict[int | str, dict[str, Any]] = {
    200: {"description": "mask on the scan's grid, gzipped NIfTI", "content": {"application/gzip": _BINARY}},
    **ERRORS,
}
SCAN_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": "one NIfTI (.nii, .nii.gz) or NRRD (.nrrd) file",
        "content": {"application/octet-stream": _BINARY, "application/gzip": _BINARY},
    }
}
# Only describes the token: the middleware checks it, before a body is read.
TOKEN = Security(HTTPBearer(auto_error=False, description="a client's token, or the endpoint's own"))
