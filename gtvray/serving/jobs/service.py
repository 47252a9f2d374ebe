"""The job service of an endpoint: submission, status, results and cancellation of jobs."""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AbstractContextManager, asynccontextmanager
from hashlib import sha256
from pathlib import Path

from starlette.requests import Request

from gtvray.config import JobsConfig
from gtvray.errors import (
    BusyError,
    ClientLimitError,
    ConflictError,
    InputError,
    NotFoundError,
    ResourceError,
    StorageFullError,
)
from gtvray.failpoints import failpoint
from gtvray.serving.gateway.access import counted
from gtvray.serving.gateway.results import SegmentationResult
from gtvray.serving.gateway.tokens import OPERATOR
from gtvray.serving.jobs.documents import JobDocument, QueueDocument, job_document, queue_document
from gtvray.serving.jobs.files import JobFiles
from gtvray.serving.jobs.intake import Intake, IntakeLimits, input_digest
from gtvray.serving.jobs.records import JobStatus, NewJob, Priority, Requester, VolumeStatus
from gtvray.serving.jobs.references import Allowed
from gtvray.serving.jobs.sealing import load_key, unseal
from gtvray.serving.jobs.store import JobStore, new_job_id
from gtvray.serving.jobs.table import DATABASE_VARIABLE, open_database
from gtvray.serving.jobs.worker import Segment, StoredResult, Worker, result_purpose
from gtvray.serving.problems import error_of
from gtvray.serving.request_log import LOGGER, log_event
from gtvray.serving.transfer.spool import Spool
from gtvray.serving.transfer.uploads import UploadLimits

_CLEAN_EVERY_S = 600.0
_CLEANS_PER_KEPT_TIME = 4
_WATCH_EVERY_S = 0.5
_MOST_WATCHERS, _MOST_WATCHERS_OF_CLIENT = 32, 8


class Jobs:
    """The job service; enter `running` before calling any other method.

    Args:
        folder: folder of the job store, created readable by its owner only.
        settings: limits and retention.
        upload: limits of the size of a volume and of the rate of a body.
        segment: segments one volume.
        spool: where referenced objects are copied to; None if jobs cannot reference any.

    Attributes:
        stopping: set when the endpoint stops.
    """

    def __init__(
        self, folder: Path, settings: JobsConfig, upload: UploadLimits, segment: Segment, spool: Spool | None = None
    ) -> None:
        self._folder, self._settings, self._upload, self._segment = folder, settings, upload, segment
        self._references = Allowed(settings.roots, settings.uris, upload.most_bytes, spool)
        # Client -> its open event streams.
        self._watchers: Counter[str] = Counter()
        self.stopping = False

    @property
    def _keep_s(self) -> float:
        return 3600.0 * self._settings.keep_h

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Open the store, process jobs within the block, and return volumes in progress to the queue at its end.

        Raises:
            ConfigError: the key or the address of the database is invalid.
        """
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._key = load_key(self._folder)
        self._files = JobFiles(self._folder, self._key)
        engine = open_database(os.environ.get(DATABASE_VARIABLE), self._folder)
        self._store = JobStore(engine, self._keep_s)
        self._worker = Worker(
            self._store,
            self._files,
            self._key,
            self._segment,
            at_once=self._settings.at_once,
            references=self._references,
        )
        tasks = [asyncio.create_task(self._worker.run()), asyncio.create_task(self._clean())]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            engine.dispose()

    async def accept(
        self, owner: str, request: Request, priority: Priority, key: str | None, model: str | None = None
    ) -> tuple[str, bool]:
        """Read a request's body into the store and queue its volumes.

        Args:
            owner: the client.
            request: the request.
            priority: priority of the job.
            key: idempotency key; a repeated one returns the earlier job.
            model: name of the model; None for the default.

        Returns:
            the job's id, once its inputs are durable; and whether it is an earlier job.

        Raises:
            InputError: the body has no valid volumes, or the key was used for another request.
            TooLargeError: a volume or their number exceeds its limit.
            BusyError: the store is full.
            StorageFullError: the disk is full.
            ResourceError: the database is not available.
        """
        key_digest = sha256(key.encode()).hexdigest() if key is not None else None
        free = int(self._settings.max_gb * 1e9) - await asyncio.to_thread(self._store.stored_bytes)
        limits = IntakeLimits(self._upload, self._settings.max_volumes, free, self._references)
        job_id = new_job_id()
        async with self._files.new_job(job_id):
            inputs = await Intake(self._files, job_id, limits).read(request)
        failpoint("jobs.durable")
        digest = input_digest(priority, inputs, model)
        new = NewJob(job_id, owner, key_digest, digest, priority, tuple(inputs), model)
        try:
            accepted = await asyncio.to_thread(self._store.accept, new)
        except Exception as error:
            # Not after a cancellation or a lost database: the job may be in the table already, and its client may
            # repeat the request. If it is not, `_clean` deletes the files.
            if not isinstance(error, ResourceError) or isinstance(error, StorageFullError):
                await asyncio.to_thread(self._files.remove_job, job_id)
            raise
        failpoint("jobs.accepted")
        if accepted.id != job_id:
            await asyncio.to_thread(self._files.remove_job, job_id)
            if accepted.input_digest != digest:
                raise InputError(
                    "this Idempotency-Key was used for another request",
                    expected="the same volumes, priority and model, or a new key",
                )
            return accepted.id, True
        log_event("job_accepted", job_id, volumes=len(inputs))
        self._worker.wake()
        return job_id, False

    async def document(self, who: Requester, job_id: str) -> JobDocument:
        """Return a job.

        Raises:
            NotFoundError: no such job that the client may read.
        """
        return self._document(await asyncio.to_thread(self._store.status, who.owner, job_id))

    async def listing(self, owner: str | None, limit: int, before: str | None) -> list[JobDocument]:
        """Return the jobs of an owner, or of all owners if None, newest first; raises as `JobStore.listing`."""
        return [self._document(job) for job in await asyncio.to_thread(self._store.listing, owner, limit, before)]

    async def cancel(self, who: Requester, job_id: str) -> JobDocument:
        """Cancel the volumes of a job that have not ended, and delete its inputs and results.

        Raises:
            NotFoundError: no such job that the client may cancel.
        """
        job = await asyncio.to_thread(self._store.cancel, who.owner, job_id)
        # First, so that no file is written after the removal.
        await self._worker.cancel(job_id)
        await asyncio.to_thread(self._files.remove_job, job_id)
        return self._document(job)

    async def result(self, who: Requester, job_id: str, number: int) -> tuple[SegmentationResult, bytes]:
        """Return the document and the mask of a volume.

        Raises:
            NotFoundError: no such volume, or its result was deleted.
            ConflictError: the volume has not ended.
            GtvrayError: the error with which the volume failed.
        """
        job = await asyncio.to_thread(self._store.status, who.owner, job_id)
        volume = next((each for each in job.volumes if each.number == number), None)
        if volume is None:
            raise NotFoundError("the job has no such volume", expected=f"0 to {len(job.volumes) - 1}", found=number)
        sealed = _require_result(volume)
        result = StoredResult.model_validate_json(unseal(sealed, self._key, result_purpose(job_id, number)))
        return result.document, await asyncio.to_thread(
            self._files.read_mask, job_id, number, volume.attempt, result.mask
        )

    async def queue(self) -> QueueDocument:
        """Return the length of the queue and the expected wait."""
        return queue_document(await asyncio.to_thread(self._store.queue), self._settings.at_once)

    def require_free_watch(self, owner: str) -> None:
        """Check that a client may watch another job.

        Raises:
            ClientLimitError: it watches too many already; the holder of the endpoint's own token has no such limit.
            BusyError: all clients together do.
        """
        if owner != OPERATOR and self._watchers[owner] >= _MOST_WATCHERS_OF_CLIENT:
            raise ClientLimitError(
                "this client watches too many jobs",
                expected=f"fewer than {_MOST_WATCHERS_OF_CLIENT} event streams at once",
                do="poll the jobs instead, or close an event stream",
            )
        if self._watchers.total() >= _MOST_WATCHERS:
            raise BusyError(
                "too many clients watch jobs", expected=f"fewer than {_MOST_WATCHERS}", do="poll the job instead"
            )

    def watching(self, owner: str) -> AbstractContextManager[None]:
        """Count an event stream of a client within a `with` block."""
        return counted(self._watchers, owner)

    async def changes(self, who: Requester, job_id: str) -> AsyncIterator[JobDocument | None]:
        """Yield a job after each change until it has ended; yield None while it is unchanged.

        Ends early when the endpoint stops, which would otherwise wait for clients that watch jobs.

        Raises:
            NotFoundError: no such job that the client may read.
        """
        shown: JobDocument | None = None
        while (shown is None or shown.ended_at is None) and not self.stopping:
            job = await self.document(who, job_id)
            yield job if job != shown else None
            shown = job
            await asyncio.sleep(_WATCH_EVERY_S if job.ended_at is None else 0)

    def _document(self, job: JobStatus) -> JobDocument:
        return job_document(job, self._keep_s, self._worker.percents)

    async def _clean(self) -> None:
        while True:
            try:
                left = await asyncio.to_thread(self._store.expire)
                await asyncio.to_thread(self._files.remove_unknown, left)
            except Exception as error:  # noqa: BLE001  # retried: the database or disk may be temporarily unavailable
                LOGGER.error("event=jobs_not_cleaned kind=%s", type(error).__name__, exc_info=error)
            await asyncio.sleep(min(_CLEAN_EVERY_S, self._keep_s / _CLEANS_PER_KEPT_TIME))


def _require_result(volume: VolumeStatus) -> bytes:
    if volume.problem is not None:
        raise error_of(volume.problem, "the job")
    if volume.state in ("queued", "running"):
        raise ConflictError("the volume has no result yet", found=volume.state, do="wait for the end of the job")
    if volume.result is None:
        raise NotFoundError("the volume has no result", found="the job was cancelled, or its results were deleted")
    return volume.result
