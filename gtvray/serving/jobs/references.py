"""Volumes that a job references by path or URI instead of sending them, below folders that the operator allows."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from hashlib import file_digest
from io import BufferedReader
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.requests import Request

from gtvray.errors import ConflictError, InputError, NotFoundError, TooLargeError
from gtvray.io import HEAD_BYTES, is_uri
from gtvray.serving.jobs.objects import copied_object, pin_object
from gtvray.serving.transfer.spool import Body, Spool, open_plain
from gtvray.serving.transfer.uploads import UploadLimits, body_chunks, check_body

MOST_REFERENCES_BYTES = 1 << 20
_MOST_REFERENCE_BYTES = 1 << 16


@dataclass(frozen=True)
class Allowed:
    """What requests and jobs may reference.

    Attributes:
        roots: folders of the server's file system.
        uris: folders in object stores.
        limit_bytes: largest file or object.
        spool: where objects are copied to; None allows none.
    """

    roots: Sequence[Path]
    uris: Sequence[str]
    limit_bytes: int
    spool: Spool | None


class Reference(BaseModel):
    """A volume on the server's file system, or in an object store."""

    model_config = ConfigDict(extra="forbid")

    path: str = Field(
        description="absolute path, below a folder of `serving.jobs.roots`; or URI, below one of `serving.jobs.uris`",
        max_length=4096,
    )


class References(BaseModel):
    """The body of a job that references its volumes."""

    model_config = ConfigDict(extra="forbid")

    volumes: list[Reference] = Field(min_length=1)


def references_schema() -> dict[str, Any]:
    """Return the JSON schema of the body, without references to other schemas."""
    schema = References.model_json_schema()
    schema["properties"]["volumes"]["items"] = schema.pop("$defs")["Reference"]
    return schema


def parse_references(body: bytes) -> list[Reference]:
    """Parse the body of a job of references.

    Raises:
        InputError: not the JSON of `References`.
    """
    try:
        return References.model_validate_json(body).volumes
    except ValidationError as error:
        raise _invalid("the references are invalid", '{"volumes": [{"path": "/data/scan.nii.gz"}]}', error) from None


async def read_reference(request: Request, limits: UploadLimits) -> Reference:
    """Read the body of a request that references one volume.

    Raises:
        InputError: not the JSON of `Reference`.
        ContentTypeError: other JSON, such as a volume as base64.
        SlowBodyError: the body arrives too slowly.
    """
    body = bytearray()
    async for chunk in body_chunks(request, limits):
        body += chunk
        if len(body) > _MOST_REFERENCE_BYTES:
            check_body(bytes(body[:HEAD_BYTES]))
            raise TooLargeError("the reference is too large", expected=f"at most {_MOST_REFERENCE_BYTES} bytes of JSON")
    try:
        return Reference.model_validate_json(bytes(body))
    except ValidationError as error:
        if b'"path"' not in body:
            check_body(bytes(body))
        raise _invalid("the reference is invalid", '{"path": "/data/scan.nii.gz"}', error) from None


def pin_reference(reference: Reference, allowed: Allowed) -> bytes:
    """Check a reference and describe its file or object as it is now.

    Returns:
        what `opened_reference` needs.

    Raises:
        NotFoundError: there is no such file below an allowed folder; files elsewhere cause the same error.
        ForbiddenError: the object store does not permit the endpoint to read the object.
        TooLargeError: the file exceeds the limit.
        ContentTypeError, VolumeError: the file is not a volume.
        ResourceError: the object store does not answer.
    """
    if is_uri(reference.path):
        return pin_object(reference.path, allowed.uris if allowed.spool is not None else (), allowed.limit_bytes)
    path, file = _open(Path(reference.path), allowed.roots)
    with file:
        found = os.fstat(file.fileno())
        if found.st_size > allowed.limit_bytes:
            raise TooLargeError("a referenced file is too large", expected=f"at most {allowed.limit_bytes} bytes")
        check_body(file.read(HEAD_BYTES))
    return json.dumps({"path": str(path), "size": found.st_size, "modified_ns": found.st_mtime_ns}).encode()


@asynccontextmanager
async def opened_reference(pinned: bytes, allowed: Allowed, client: str) -> AsyncIterator[Body]:
    """Yield a referenced file or object as a body that replicas can read; check at the end that it has not changed.

    A file is read once before, to compute its digest. An object is copied to the spool.

    Args:
        pinned: from `pin_reference`.
        allowed: what may be referenced.
        client: client that a copy counts for.

    Raises:
        NotFoundError: it is no longer below an allowed folder.
        ConflictError: it was changed after it was accepted.
        GtvrayError: as `copied_object`.
    """
    if "uri" in json.loads(pinned) and allowed.spool is not None:
        async with copied_object(pinned, allowed.uris, allowed.limit_bytes, allowed.spool, client) as body:
            yield body
        return
    yield await asyncio.to_thread(_body, pinned, allowed.roots)
    # A replica has read the file itself, possibly after a change.
    await asyncio.to_thread(_require_unchanged, pinned, allowed.roots)


def _body(pinned: bytes, roots: Sequence[Path]) -> Body:
    with _unchanged(pinned, roots) as (path, file):
        return Body(path, os.fstat(file.fileno()).st_size, file_digest(file, "sha256").hexdigest())


def _require_unchanged(pinned: bytes, roots: Sequence[Path]) -> None:
    with _unchanged(pinned, roots):
        pass


@contextmanager
def _unchanged(pinned: bytes, roots: Sequence[Path]) -> Iterator[tuple[Path, BufferedReader]]:
    stored = json.loads(pinned)
    path, file = _open(Path(stored["path"]), roots)
    with file:
        found = os.fstat(file.fileno())
        if (found.st_size, found.st_mtime_ns) != (stored["size"], stored["modified_ns"]):
            raise ConflictError("a referenced file was changed after it was accepted", do="send the request again")
        yield path, file


def _open(path: Path, roots: Sequence[Path]) -> tuple[Path, BufferedReader]:
    unknown = NotFoundError(
        "no such file below an allowed folder",
        expected="an absolute path of a file below a folder of serving.jobs.roots",
        do="send the volume itself, or ask the operator to allow its folder",
    )
    try:
        real = path.resolve(strict=True)
        if not path.is_absolute() or not any(real.is_relative_to(root.resolve()) for root in roots):
            raise unknown
        # The resolved path contains no symbolic link, unless a part of it is replaced by one concurrently.
        return real, open_plain(real)
    except (OSError, ValueError, RuntimeError):
        raise unknown from None


def _invalid(what: str, expected: str, error: ValidationError) -> InputError:
    first = error.errors()[0]
    where = ".".join(map(str, first["loc"])) or "body"
    return InputError(what, where=where, expected=expected, found=first["msg"])
