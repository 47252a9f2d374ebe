"""The worker of a gateway: claims volumes of jobs, segments them, and records the outcome."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Protocol

from pydantic import BaseModel
from sqlalchemy.exc import SQLAlchemyError

from gtvray.errors import BusyError, GtvrayError, NotReadyError, NotReproducedError, ResourceError
from gtvray.failpoints import failpoint
from gtvray.serving.gateway.results import SegmentationResult, result_document
from gtvray.serving.jobs.documents import result_path
from gtvray.serving.jobs.files import JobFiles, StoredFile
from gtvray.serving.jobs.records import Claim
from gtvray.serving.jobs.references import Allowed, opened_reference
from gtvray.serving.jobs.sealing import seal
from gtvray.serving.jobs.store import JobStore
from gtvray.serving.problems import internal_error
from gtvray.serving.request_log import LOGGER, log_event
from gtvray.serving.transfer.spool import completed

if TYPE_CHECKING:
    from gtvray.serving.transfer.spool import Body
    from gtvray.serving.transfer.work import Prediction

_POLL_S = 1.0
_WAIT_FOR_MODEL_S = 2.0
_CANCELLED_S = 5.0


class Segment(Protocol):
    """Interface of the endpoint that the worker uses."""

    def __call__(
        self, body: Body, model: str | None, client: str, request_id: str, report: Callable[[int, int], None]
    ) -> Awaitable[Prediction]:
        """Segment a volume; cancelling the call stops its patches.

        Args:
            body: a NIfTI or NRRD file.
            model: name of the model; None for the default.
            client: client that owns the job.
            request_id: id for the log.
            report: called with the number of patches processed, and the number known so far.

        Raises:
            BusyError, NotReadyError, NotReproducedError: no model can process a volume at the moment.
            ResourceError: the volume can be retried.
            GtvrayError: the volume failed.
        """


class StoredResult(BaseModel):
    """The result of a segmented volume, which is stored encrypted."""

    document: SegmentationResult
    mask: StoredFile


def result_purpose(job_id: str, number: int) -> str:
    """Purpose of a stored result; see `seal`."""
    return f"{job_id}/{number}/result"


class Worker:
    """Processes volumes of jobs until it is cancelled.

    Args:
        store: tables of the job store.
        files: files of the job store.
        key: key of the job store.
        segment: segments one volume.
        at_once: maximum number of volumes in progress.
        references: what jobs may reference.
    """

    def __init__(
        self, store: JobStore, files: JobFiles, key: bytes, segment: Segment, *, at_once: int, references: Allowed
    ) -> None:
        self._store, self._files, self._key = store, files, key
        self._segment, self._at_once, self._references = segment, at_once, references
        self._running: dict[Claim, asyncio.Task[None]] = {}
        self._percent: dict[Claim, float] = {}
        self._paused_until = 0.0
        self._wake = asyncio.Event()

    @property
    def percents(self) -> dict[tuple[str, int], float]:
        """Volume -> percentage, of the volumes in progress on this gateway."""
        return {claim.volume: percent for claim, percent in self._percent.items()}

    def wake(self) -> None:
        """Claim volumes now instead of at the next poll, as a job was accepted."""
        self._wake.set()

    async def cancel(self, job_id: str) -> None:
        """Cancel the volumes of a job in progress on this gateway, and wait for a short time until they have ended."""
        ended = {task for claim, task in self._running.items() if claim.job_id == job_id}
        for task in ended:
            task.cancel()
        if ended:
            await asyncio.wait(ended, timeout=_CANCELLED_S)

    async def run(self) -> None:
        """Claim and process volumes, and renew their leases."""
        try:
            while True:
                try:
                    await self._renew()
                    await self._fill()
                except Exception as error:  # noqa: BLE001  # retried: the database may be temporarily unavailable
                    LOGGER.error("event=jobs_unavailable kind=%s", type(error).__name__, exc_info=error)
                self._wake.clear()
                try:
                    async with asyncio.timeout(_POLL_S):
                        await self._wake.wait()
                except TimeoutError:
                    pass
        finally:
            await self._stop()

    async def _fill(self) -> None:
        """Claim volumes while fewer than the limit are processed."""
        while len(self._running) < self._at_once and time.monotonic() >= self._paused_until:
            claim = await asyncio.to_thread(self._store.claim)
            if claim is None:
                return
            self._percent[claim] = 0.0
            self._running[claim] = asyncio.create_task(self._process(claim))

    async def _renew(self) -> None:
        if not self._running:
            return
        for claim in await asyncio.to_thread(self._store.renew, dict(self._percent)):
            if claim in self._running:
                self._running[claim].cancel()

    async def _stop(self) -> None:
        """Cancel the volumes in progress and return them to the queue, so that they need not wait for their leases."""
        running = dict(self._running)
        for task in running.values():
            task.cancel()
        await asyncio.gather(*running.values(), return_exceptions=True)
        for claim in running:
            self._store.release(claim)

    async def _process(self, claim: Claim) -> None:
        try:
            await self._attempt(claim)
        except (BusyError, NotReadyError, NotReproducedError):
            self._paused_until = time.monotonic() + _WAIT_FOR_MODEL_S
            await self._give_back(claim)
        except (ResourceError, SQLAlchemyError, OSError) as error:
            # The volume is not the cause: the database or disk was unavailable, possibly after the mask was predicted.
            log_event("job_delayed", claim.job_id, logging.WARNING, volume=claim.number, kind=type(error).__name__)
            await self._give_back(claim, _WAIT_FOR_MODEL_S)
        except GtvrayError as error:
            await self._fail(claim, error)
        except Exception as error:  # noqa: BLE001  # the volume fails, and the worker continues
            log_event("unexpected_error", claim.job_id, logging.ERROR, trace=error)
            await self._fail(claim, internal_error())
        finally:
            self._running.pop(claim, None)
            self._percent.pop(claim, None)
            self._wake.set()

    async def _attempt(self, claim: Claim) -> None:
        began = time.monotonic()
        failpoint("jobs.claimed")

        def report(processed: int, known: int) -> None:
            # More patches may become known, but the reported progress never decreases.
            self._percent[claim] = max(self._percent[claim], 100.0 * processed / max(known, 1))

        async with self._body(claim) as body:
            prediction = await self._segment(body, claim.model, claim.owner, claim.job_id, report)
        href = result_path(*claim.volume)
        document = result_document(prediction, claim.job_id, time.monotonic() - began, href)
        # To its end even if the job is cancelled: a thread that writes cannot be interrupted, and would leave its mask.
        await completed(asyncio.to_thread(self._record, claim, document, prediction.mask_gz))

    def _record(self, claim: Claim, document: SegmentationResult, mask_gz: bytes) -> None:
        """Store the result of a volume; nothing stays if its claim is no longer valid."""
        mask, size = self._files.write_mask(claim, mask_gz)
        result = StoredResult(document=document, mask=mask).model_dump_json().encode()
        sealed = seal(result, self._key, result_purpose(*claim.volume))
        failpoint("jobs.written")
        if self._store.finish(claim, sealed, size):
            failpoint("jobs.finished")
            log_event("job_volume_done", claim.job_id, volume=claim.number, attempt=claim.attempt)
            self._files.remove_leftovers(claim)
        else:
            self._files.remove_mask(claim)

    @asynccontextmanager
    async def _body(self, claim: Claim) -> AsyncIterator[Body]:
        if not claim.reference:
            yield await asyncio.to_thread(self._files.input_body, claim)
            return
        async with opened_reference(self._files.read_reference(claim), self._references, claim.owner) as body:
            yield body

    async def _give_back(self, claim: Claim, delay_s: float = 0.0) -> None:
        # If the database is unavailable, the volume returns to the queue when its lease expires.
        with suppress(ResourceError):
            await asyncio.to_thread(self._store.release, claim, delay_s)

    async def _fail(self, claim: Claim, error: GtvrayError) -> None:
        log_event("job_volume_failed", claim.job_id, volume=claim.number, kind=type(error).__name__)
        if await asyncio.to_thread(self._store.fail, claim, error):
            await asyncio.to_thread(self._files.remove_leftovers, claim)
