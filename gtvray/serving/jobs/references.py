"""Volumes that a job references by path instead of sending them, below folders that the operator allows."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from hashlib import file_digest
from io import BufferedReader
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from gtvray.errors import ConflictError, InputError, NotFoundError, TooLargeError
from gtvray.io import HEAD_BYTES
from gtvray.serving.transfer.spool import Body, open_plain
from gtvray.serving.transfer.uploads import check_body

MOST_REFERENCES_BYTES = 1 << 20


class Reference(BaseModel):
    """A volume on the server's file system."""

    model_config = ConfigDict(extra="forbid")

    path: str = Field(description="absolute path, below a folder of `serving.jobs.roots`", max_length=4096)


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
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "body"
        expected = '{"volumes": [{"path": "/data/scan.nii.gz"}]}'
        raise InputError("the references are invalid", where=where, expected=expected, found=first["msg"]) from None


def pin_reference(reference: Reference, roots: Sequence[Path], limit_bytes: int) -> bytes:
    """Check a reference and describe its file as it is now.

    Returns:
        what `reference_body` and `require_unchanged` need.

    Raises:
        NotFoundError: there is no such file below an allowed folder; files elsewhere cause the same error.
        TooLargeError: the file exceeds the limit.
        ContentTypeError, VolumeError: the file is not a volume.
    """
    path, file = _open(Path(reference.path), roots)
    with file:
        found = os.fstat(file.fileno())
        if found.st_size > limit_bytes:
            raise TooLargeError("a referenced file is too large", expected=f"at most {limit_bytes} bytes")
        check_body(file.read(HEAD_BYTES))
    return json.dumps({"path": str(path), "size": found.st_size, "modified_ns": found.st_mtime_ns}).encode()


def reference_body(pinned: bytes, roots: Sequence[Path]) -> Body:
    """Return a referenced file as a body that replicas can read; reads the file once to compute its digest.

    Raises:
        NotFoundError: it is no longer below an allowed folder.
        ConflictError: it was changed after the job was accepted.
    """
    with _unchanged(pinned, roots) as (path, file):
        return Body(path, os.fstat(file.fileno()).st_size, file_digest(file, "sha256").hexdigest())


def require_unchanged(pinned: bytes, roots: Sequence[Path]) -> None:
    """Check that a referenced file has not changed; raises as `reference_body`."""
    with _unchanged(pinned, roots):
        pass


@contextmanager
def _unchanged(pinned: bytes, roots: Sequence[Path]) -> Iterator[tuple[Path, BufferedReader]]:
    stored = json.loads(pinned)
    path, file = _open(Path(stored["path"]), roots)
    with file:
        found = os.fstat(file.fileno())
        if (found.st_size, found.st_mtime_ns) != (stored["size"], stored["modified_ns"]):
            raise ConflictError("a referenced file was changed after the job was accepted", do="send the job again")
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
