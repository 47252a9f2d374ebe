"""Volumes that a job references by URI in an object store, below folders that the operator allows."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, closing

from gtvray.errors import ConflictError, NotFoundError, TooLargeError
from gtvray.io import HEAD_BYTES, ObjectReader, ObjectState
from gtvray.serving.transfer.spool import Body, Spool, completed
from gtvray.serving.transfer.uploads import check_body

_BLOCK_BYTES = 1 << 20
# None of these is part of a name: what follows them could select another store, or be read as another name.
_NOT_IN_NAMES = frozenset("?#%@\\")


def pin_object(uri: str, folders: Sequence[str], limit_bytes: int) -> bytes:
    """Check a reference and describe its object as it is now.

    Returns:
        what `copied_object` needs.

    Raises:
        NotFoundError: there is no such object below an allowed folder; objects elsewhere cause the same error.
        ForbiddenError: the store does not permit to read it.
        TooLargeError: the object exceeds the limit.
        ContentTypeError, VolumeError: the object is not a volume.
        ResourceError: the store does not answer.
    """
    with closing(_reader(uri, folders)) as reader:
        state = _state(reader)
        if state.size > limit_bytes:
            raise _too_large(limit_bytes)
        check_body(reader.read(HEAD_BYTES))
    return json.dumps({"uri": uri, "size": state.size, "modified_ns": state.modified_ns}).encode()


@asynccontextmanager
async def copied_object(
    pinned: bytes, folders: Sequence[str], limit_bytes: int, spool: Spool, client: str
) -> AsyncIterator[Body]:
    """Copy a referenced object to the spool, encrypted; the copy exists within the `async with` block.

    Args:
        pinned: from `pin_object`.
        folders: allowed folders.
        limit_bytes: largest object.
        spool: the spool.
        client: client that the copy counts for.

    Raises:
        ConflictError: it was changed after it was accepted.
        BusyError, StorageFullError: the spool has no space.
        GtvrayError: as `pin_object`.
    """
    stored = json.loads(pinned)
    expected = ObjectState(stored["size"], stored["modified_ns"])
    reader = await asyncio.to_thread(_reader, stored["uri"], folders)
    try:
        await _require(reader, expected)
        async with spool.create(client) as file:
            received = 0
            while block := await completed(asyncio.to_thread(reader.read, _BLOCK_BYTES)):
                received += len(block)
                if received > limit_bytes:
                    raise _too_large(limit_bytes)
                await file.write(block)
            # Blocks of an object that is replaced while it is read would be mixed.
            await _require(reader, expected)
            yield await file.finish()
    finally:
        await asyncio.to_thread(reader.close)


def _reader(uri: str, folders: Sequence[str]) -> ObjectReader:
    for folder in folders:
        below, prefix = folder.rstrip("/"), f"{folder.rstrip('/')}/"
        name = uri.removeprefix(prefix)
        if uri.startswith(prefix) and _is_name(name):
            return ObjectReader(below, name)
    raise _unknown()


def _is_name(name: str) -> bool:
    parts = name.split("/")
    return name.isprintable() and not _NOT_IN_NAMES & set(name) and not {"", ".", ".."} & set(parts)


def _state(reader: ObjectReader) -> ObjectState:
    try:
        return reader.state()
    except NotFoundError:
        raise _unknown() from None


async def _require(reader: ObjectReader, expected: ObjectState) -> None:
    if await asyncio.to_thread(_state, reader) != expected:
        raise ConflictError("a referenced object was changed after it was accepted", do="send the request again")


def _too_large(limit_bytes: int) -> TooLargeError:
    return TooLargeError("a referenced object is too large", expected=f"at most {limit_bytes} bytes")


def _unknown() -> NotFoundError:
    return NotFoundError(
        "no such object below an allowed folder",
        expected="the URI of an object below a folder of serving.jobs.uris",
        do="send the volume itself, or ask the operator to allow its folder",
    )
