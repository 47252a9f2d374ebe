"""Segmentation of a spooled scan on a replica: slots, pinned version, retries after lost replicas, and time limit."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

from opentelemetry.trace import SpanKind
from ray.exceptions import RayActorError, RayTaskError
from ray.serve.exceptions import DeploymentUnavailableError

from gtvray.errors import BusyError, ClientLimitError, DeadlineError, ResourceError
from gtvray.serving.arguments import AppArguments
from gtvray.serving.gateway.access import counted
from gtvray.serving.gateway.tokens import OPERATOR
from gtvray.serving.metrics import REPLICAS_LOST
from gtvray.serving.replica.quarantine import Quarantine, read_point
from gtvray.serving.request_log import log_event
from gtvray.serving.tracing import NO_TRACES, Tracing, current_headers
from gtvray.serving.transfer.sealed import new_key
from gtvray.serving.transfer.spool import Body, Spool
from gtvray.serving.transfer.stream import BodyStream
from gtvray.serving.transfer.work import Answer, Prediction, Work
from gtvray.serving.versions.served import REPLICA_LOST, Served, cause_of

_PAUSE_S = 0.2
# Part of the slots that one client may take, so that it does not keep the others out.
_CLIENT_SHARE = 0.75
# Called with the number of patches processed, and the number known so far.
Report = Callable[[int, int], None]


class Segmenter:
    """Segment scans on the replicas of the served version of a model.

    Args:
        args: the application's arguments.
        spool: stores masks until they are read.
        stream: transfers scans and masks to and from replicas on other nodes.
        node: id of this node.
        tracing: receives a span for each call of a replica.

    Attributes:
        pending: number of scans received and not yet answered.
    """

    def __init__(
        self, args: AppArguments, spool: Spool, stream: BodyStream, node: str, tracing: Tracing = NO_TRACES
    ) -> None:
        self._serving, self._spool = args.serving, spool
        self._stream, self._node, self._tracing = stream, node, tracing
        self._quarantine = Quarantine()
        # Waiting scans are files on disk. Only a completely received scan takes a slot, never one that is being sent.
        self._slots = asyncio.Semaphore(args.serving.max_pending)
        self._of_client: Counter[str] = Counter()

    @property
    def pending(self) -> int:
        """Number of scans in progress, of all clients."""
        return self._of_client.total()

    def require_capacity(self, client: str = OPERATOR) -> None:
        """Check that another scan of a client can be accepted.

        Raises:
            ClientLimitError: too many scans of this client are in progress; the holder of the endpoint's own token has
                no such limit.
            BusyError: too many scans of all clients are in progress.
        """
        limit = self._serving.max_pending
        share = max(1, int(_CLIENT_SHARE * limit))
        if client != OPERATOR and self._of_client[client] >= share:
            raise ClientLimitError(
                "this client has too many requests in progress",
                expected=f"fewer than {share} requests at once",
                do="wait for the answers to earlier requests",
            )
        if self.pending >= limit:
            raise BusyError(
                "the endpoint is at capacity", expected=f"fewer than {limit} requests in progress", do="retry later"
            )

    async def segment(
        self, served: Served, body: Body, request_id: str, report: Report | None = None, *, client: str = OPERATOR
    ) -> Prediction:
        """Segment a scan with the currently served version of a model. A cancelled scan is dropped from later batches.

        Args:
            served: the model.
            body: the scan's file, which this node can read.
            request_id: id for the logs.
            report: called with the numbers of patches processed and known so far. Set for volumes of jobs, which have
                no time limit; None for a request.
            client: client that the scan counts for.

        Raises:
            DataError: the scan is not valid, or has killed replicas.
            TooLargeError: it exceeds a limit.
            NotReadyError: no model is served.
            DeadlineError: the mask was not ready in time.
            ResourceError: the model cannot be started.
            FailureError: the scan's file was changed.
            NotFoundError: a plain file is missing on the node of the model.
        """
        limit_s = self._serving.timeout_s if report is None else None
        try:
            with counted(self._of_client, client), served.pinned() as (app, model):
                async with asyncio.timeout(limit_s), self._slots:
                    return await self._attempt_until_done(app, model, body, request_id, report)
        except TimeoutError:
            expected = f"within {self._serving.timeout_s:g} s"
            raise DeadlineError("the mask was not ready in time", expected=expected) from None

    async def segment_once(self, model: Any, body: Body, request_id: str) -> Prediction:
        """Segment a scan in a single attempt without slot, time limit or quarantine, for shadow comparisons.

        Args:
            model: handle of the version.
            body: the scan's file, which this node can read.
            request_id: id for the logs.

        Raises:
            RayError: the replica died.
            GtvrayError: as `segment`.
        """
        work = self._new_work(body)
        try:
            return await self._attempt(model, work, request_id, None)
        finally:
            await asyncio.to_thread(work.remove)

    async def _attempt_until_done(
        self, app: str, model: Any, body: Body, request_id: str, report: Report | None
    ) -> Prediction:
        """Retry until a replica responds: Serve does not retry a request that a dying replica had accepted."""
        attempt = 0
        while True:
            self._quarantine.require_harmless(app, body.sha256)
            async with self._quarantine.suspicion(app, body.sha256):
                attempt += 1
                work = self._new_work(body)
                try:
                    prediction = await self._attempt(model, work, request_id, report)
                except REPLICA_LOST as error:
                    point = self._point(work, attempt)
                    if point is not None:
                        self._quarantine.record_death(app, body.sha256, point)
                    REPLICAS_LOST.labels("waiting" if point is None else "active").inc()
                    kind = type(error).__name__
                    log_event(
                        "replica_lost", request_id, logging.WARNING, attempt=attempt, kind=kind, at=point or "waiting"
                    )
                else:
                    self._quarantine.record_success(app, body.sha256)
                    return prediction
                finally:
                    await asyncio.to_thread(work.remove)
            await asyncio.sleep(_PAUSE_S)

    async def _attempt(self, model: Any, work: Work, request_id: str, report: Report | None) -> Prediction:
        known = {"gtvray.request_id": request_id}
        with self._tracing.span("replica", kind=SpanKind.CLIENT, attributes=known), self._stream.offered(work):
            work = replace(work, trace=current_headers())
            answer = await self._call(model, work, request_id, report)
        mask_gz = await asyncio.to_thread(work.read_result, answer.mask_bytes)
        return replace(answer.prediction, mask_gz=mask_gz)

    async def _call(self, model: Any, work: Work, request_id: str, report: Report | None) -> Answer:
        response: Any
        answer: Answer
        if report is None:
            response = waiting = model.predict.remote(work, request_id)
        else:
            response = model.options(stream=True).predict_reporting.remote(work, request_id)
            waiting = _last(response, report)
        try:
            answer = await waiting
        except DeploymentUnavailableError:
            raise ResourceError("the model could not be started", do="see the server's log") from None
        except RayTaskError as error:
            raise cause_of(error) from None
        except asyncio.CancelledError:
            response.cancel()
            raise
        return answer

    def _new_work(self, body: Body) -> Work:
        return Work(
            body=body,
            result=self._spool.path(".mask"),
            result_key=new_key(),
            journal=self._spool.path(".at"),
            node=self._node,
            stream=self._stream.new_address(),
        )

    def _point(self, work: Work, attempt: int) -> str | None:
        """Point at which a scan was being processed when its replica died; None if it was only waiting."""
        if self._stream.was_fetched(work):
            return f"attempt {attempt} on another node"
        return read_point(work.journal)


async def _last(messages: AsyncIterator[tuple[int, int] | Answer], report: Report) -> Answer:
    """Report the progress messages of a stream, and return the answer at its end."""
    async for message in messages:
        if isinstance(message, Answer):
            return message
        report(*message)
    raise RayActorError
