"""The body of a new job: one volume, a form of several, or references; written to the job store as it arrives."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from hashlib import sha256

from starlette.requests import Request
from werkzeug.exceptions import RequestEntityTooLarge
from werkzeug.http import parse_options_header
from werkzeug.sansio.multipart import Data, Epilogue, Field, File, MultipartDecoder, NeedData

from gtvray.errors import BusyError, InputError, TooLargeError
from gtvray.io import HEAD_BYTES
from gtvray.serving.jobs.files import JobFiles, NewInput
from gtvray.serving.jobs.records import NewVolume
from gtvray.serving.jobs.references import MOST_REFERENCES_BYTES, Allowed, parse_references, pin_reference
from gtvray.serving.transfer.spool import PIECE_BYTES, completed
from gtvray.serving.transfer.uploads import UploadLimits, body_chunks, check_headers

PART = "scan"
# The decoder gets the body in pieces, and holds no more than this, so that the headers of a part are bounded.
_PIECE_BYTES = 64 << 10
_MOST_HELD_BYTES = 4 * _PIECE_BYTES
_FORM = f"a form with the volumes as files named {PART}: curl -F {PART}=@first.nii.gz -F {PART}=@second.nii.gz"


@dataclass(frozen=True)
class IntakeLimits:
    """Limits of a new job.

    Attributes:
        upload: limits of the size of a volume and of the rate of the body.
        volumes: maximum number of volumes.
        free_bytes: remaining capacity of the job store.
        references: what may be referenced.
    """

    upload: UploadLimits
    volumes: int
    free_bytes: int
    references: Allowed


class Intake:
    """Reads the body of one job.

    Args:
        files: the job store's files.
        job_id: the job, whose folder exists.
        limits: limits.
    """

    def __init__(self, files: JobFiles, job_id: str, limits: IntakeLimits) -> None:
        self._files, self._job_id, self._limits = files, job_id, limits
        self._inputs: list[NewVolume] = []
        self._open: NewInput | None = None
        self._piece, self._begun = bytearray(), False
        self._received = 0

    async def read(self, request: Request) -> list[NewVolume]:
        """Read a request's body; the inputs are on disk, and flushed, when it returns.

        Raises:
            InputError: the body is neither a volume, nor a form with volumes, nor valid references.
            TooLargeError: a volume, or their number, exceeds its limit.
            SlowBodyError: the body arrives too slowly.
            BusyError: the job store is full.
        """
        media_type, options = parse_options_header(request.headers.get("content-type"))
        try:
            if media_type == "multipart/form-data":
                await self._read_form(request, options.get("boundary", ""))
            elif media_type == "application/json":
                await self._read_references(request)
            else:
                check_headers(request.headers)
                await self._begin()
                async for chunk in body_chunks(request, self._limits.upload):
                    await self._write(chunk)
                await self._end()
            await asyncio.to_thread(self._files.make_durable, self._job_id)
        finally:
            if self._open is not None:
                self._open.close()
        return self._inputs

    async def _read_form(self, request: Request, boundary: str) -> None:
        if not boundary.isascii() or not boundary:
            raise InputError("the form has no boundary", where="Content-Type", expected=_FORM)
        try:
            decoder = MultipartDecoder(boundary.encode(), _MOST_HELD_BYTES)
            async for chunk in body_chunks(request, self._limits.upload):
                for start in range(0, len(chunk), _PIECE_BYTES):
                    decoder.receive_data(chunk[start : start + _PIECE_BYTES])
                    await self._process(decoder)
            decoder.receive_data(None)
            await self._process(decoder)
        except (ValueError, RequestEntityTooLarge) as error:
            raise InputError("the form is malformed", expected=_FORM, found=error) from error
        if not self._inputs:
            raise InputError("the form has no volume", expected=_FORM)

    async def _process(self, decoder: MultipartDecoder) -> None:
        while not isinstance(event := decoder.next_event(), NeedData):
            if isinstance(event, Epilogue):
                return
            if isinstance(event, File | Field):
                if event.name != PART:
                    raise InputError("the form has an unknown field", expected=_FORM)
                await self._begin()
            elif isinstance(event, Data):
                await self._write(event.data)
                if not event.more_data:
                    await self._end()

    async def _read_references(self, request: Request) -> None:
        body = bytearray()
        async for chunk in body_chunks(request, self._limits.upload):
            body += chunk
            if len(body) > MOST_REFERENCES_BYTES:
                raise TooLargeError("too many references", expected=f"at most {MOST_REFERENCES_BYTES} bytes of JSON")
        limits = self._limits
        for reference in parse_references(bytes(body)):
            pinned = await asyncio.to_thread(pin_reference, reference, limits.references)
            self._require_space(len(pinned))
            self._inputs.append(self._files.new_reference(self._job_id, self._next_number(), pinned))

    async def _begin(self) -> None:
        number, limit = self._next_number(), self._limits.upload.most_bytes
        self._open = await completed(asyncio.to_thread(self._files.new_input, self._job_id, number, limit))
        self._piece, self._begun = bytearray(), False

    def _next_number(self) -> int:
        if len(self._inputs) == self._limits.volumes:
            raise TooLargeError(
                "the job has too many volumes", expected=f"at most {self._limits.volumes}", do="send several jobs"
            )
        return len(self._inputs)

    async def _write(self, content: bytes) -> None:
        """Append bytes; a thread encrypts and writes them in pieces, the first as soon as it can be checked."""
        self._require_space(len(content))
        self._piece += content
        if len(self._piece) >= (PIECE_BYTES if self._begun else HEAD_BYTES):
            await self._flush()

    async def _flush(self) -> None:
        assert self._open is not None, "a part has begun"
        piece, self._piece, self._begun = bytes(self._piece), bytearray(), True
        await completed(asyncio.to_thread(self._open.write, piece))

    def _require_space(self, count: int) -> None:
        self._received += count
        if self._received > self._limits.free_bytes:
            raise BusyError("the job store is full", do="retry later; delete jobs whose results were fetched")

    async def _end(self) -> None:
        await self._flush()
        assert self._open is not None, "a part has begun"
        self._inputs.append(await completed(asyncio.to_thread(self._open.finish)))
        self._open = None


def input_digest(priority: str, inputs: list[NewVolume], model: str | None = None) -> str:
    """Return a digest of priority, volumes and model, by which a repeated request is recognised."""
    named = [f"model {model}"] if model is not None else []
    return sha256("\n".join([priority, *(each.digest for each in inputs), *named]).encode()).hexdigest()
