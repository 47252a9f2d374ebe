"""The Model deployment: a bundle, one scheduler and one inference thread per replica.

A replica becomes ready only if it reproduces the golden cases of its model's promotion.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, asynccontextmanager, contextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import ray
from opentelemetry.trace import SpanKind
from ray import serve

from gtvray.errors import BundleError, NotReadyError, ResourceError
from gtvray.failpoints import failpoint
from gtvray.inference import StageClock
from gtvray.io import encode_nifti, read_open_volume
from gtvray.serving.arguments import AppArguments
from gtvray.serving.metrics import ReplicaMetrics
from gtvray.serving.replica.admission import admit
from gtvray.serving.replica.budget import MemoryBudget
from gtvray.serving.replica.golden import check_golden, require_beside_others
from gtvray.serving.replica.quarantine import Journal
from gtvray.serving.replica.scheduler import Network, PatchJob, PatchScheduler
from gtvray.serving.request_log import log_event
from gtvray.serving.scaling import Load
from gtvray.serving.tracing import Tracing
from gtvray.serving.transfer.spool import Spool
from gtvray.serving.transfer.work import Answer, Prediction, Work, fetched

if TYPE_CHECKING:
    from numpy import float32
    from numpy.typing import NDArray

    from gtvray.inference import Patch, Predictor, SegmentationRequest, Suspicion
    from gtvray.preprocessing import Prepared

_REPORT_EVERY_S = 1.0
_Result = TypeVar("_Result")
_Stage = Callable[[str], AbstractContextManager[None]]
# Added to the niceness of the threads that prepare large scans, so that they do not delay small ones.
_LARGE_NICENESS = 10


class Model:
    """A model replica: prepares scans in thread pools and runs inference in one thread; patches stay in its process.

    Args:
        args: the application's arguments.

    Raises:
        BundleError: the bundle is damaged, or its digest is not `args.digest`.
    """

    def __init__(self, args: AppArguments) -> None:
        self._args = args
        self._predictor = _warm_predictor(args)
        # A failed check raises only beside replicas that serve: if none did, Serve would restart this one forever, and
        # the reason would be lost.
        self._golden = check_golden(args.golden, self._predictor)
        require_beside_others(self._golden, args.versions)
        self._network = Network(self._predictor.forward, self._predictor.batch_size)
        locator = self._predictor.locator
        self._locating = Network(locator.forward, locator.batch_size) if locator is not None else None
        self._metrics = ReplicaMetrics()
        self._tracing = Tracing(args.serving.traces_url, "gtvray-model")
        self._scheduler = PatchScheduler(on_batch=self._metrics.batch, tracing=self._tracing)
        self._load = Load(self._scheduler, self._network)
        # Bounds the decoded scans in memory; further requests wait as files.
        self._budget = MemoryBudget(int(args.serving.scan_memory_gb * 1e9))
        self._small = ThreadPoolExecutor(1, thread_name_prefix="small-scan")
        self._large = ThreadPoolExecutor(1, thread_name_prefix="large-scan", initializer=_be_nice)
        self._copies: Spool | None = None

    async def predict(
        self, work: Work, request_id: str, started: Callable[[SegmentationRequest], None] | None = None
    ) -> Answer:
        """Predict the mask of a NIfTI or NRRD file.

        Args:
            work: the scan's file, and the path for its mask.
            request_id: id for the log.
            started: called with the request once it is prepared.

        Raises:
            InputError: the file is not a valid CT volume, or exceeds a limit.
            NotReproducedError: this replica failed the golden cases.
            ResourceError: the scan cannot be copied from another node, or the mask cannot be written.
        """
        self._golden.require()
        began, known = time.monotonic(), {"gtvray.request_id": request_id, "gtvray.version": self._args.version}
        with self._tracing.span("scan", work.trace, SpanKind.SERVER, known):
            async with self._local(work) as here:
                try:
                    answer = await self._segment(here, request_id, started)
                except asyncio.CancelledError:
                    # The gateway may have removed the files before they were written.
                    here.remove()
                    log_event("cancelled", request_id, logging.WARNING)
                    raise
        patches = answer.prediction.coverage.patches
        log_event("predicted", request_id, patches=patches, ms=round(1000 * (time.monotonic() - began)))
        return answer

    async def predict_reporting(self, work: Work, request_id: str) -> AsyncIterator[tuple[int, int] | Answer]:
        """Predict as `predict`, and report progress from the same replica without a call per patch.

        Yields:
            the patches processed and the patches known so far, about once a second; last, the answer.

        Raises:
            as `predict`.
        """
        begun: list[SegmentationRequest] = []
        task = asyncio.create_task(self.predict(work, request_id, begun.append))
        try:
            while not (await asyncio.wait({task}, timeout=_REPORT_EVERY_S))[0]:
                for job in begun:
                    yield job.patches - job.remaining, job.patches
            yield await task
        finally:
            task.cancel()

    async def describe(self) -> dict[str, Any]:
        """Describe the model; a replica that returns is ready.

        Raises:
            NotReproducedError: this replica failed the golden cases.
        """
        self._golden.require()
        bundle = self._predictor.bundle
        return {
            "digest": bundle.digest,
            "version": self._args.version,
            "gate_override": self._args.override or None,
            "licence_of_training_data": bundle.info.get("training_data", {}).get("licence", "not stated"),
            "golden": self._golden.outcome,
            "labels": bundle.labels,
            "preprocessing": bundle.preprocessing.model_dump(mode="json"),
            "inference": bundle.inference.model_dump(mode="json"),
            "patch_ijk": bundle.patch_ijk,
        }

    async def reproduced(self) -> str:
        """Return the id of this replica, which has reproduced the golden cases if the model has any.

        Raises:
            NotReproducedError: this replica failed the golden cases.
        """
        self._golden.require()
        return str(serve.get_replica_context().replica_id.unique_id)

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """Report to the autoscaling policy; Serve calls this periodically if the number of replicas may change."""
        return self._load.stats()

    def check_health(self) -> None:
        """Raise if inference is stalled or the GPU has failed; Serve calls this and replaces a replica that raises."""
        self._scheduler.check_progress(self._args.serving.timeout_s)

    async def _segment(
        self, work: Work, request_id: str, started: Callable[[SegmentationRequest], None] | None
    ) -> Answer:
        serving, body, clock = self._args.serving, work.body, StageClock()

        @contextmanager
        def stage(name: str) -> Iterator[None]:
            with clock.stage(name), self._metrics.stage(name), self._tracing.span(name):
                yield

        with Journal(work.journal) as journal, self._load.scan() as expected:
            most = serving.max_volume_mb << 20, self._budget.largest_bytes
            cost = await _in_thread(self._small, journal.at("header", admit), body, self._predictor.bundle, *most)
            log_event(
                "admitted", request_id, voxels=cost.prepared_voxels, patches=cost.patches, mb=cost.peak_bytes >> 20
            )
            expected.patches = cost.patches
            small = self._budget.is_small(cost.peak_bytes)
            in_thread = partial(_in_thread, self._small if small else self._large)
            async with self._memory(cost.peak_bytes, stage):
                with stage("prepare"):
                    prepared, reasons = await in_thread(journal.at("scan", self._prepare), work)
                with stage("locate"):
                    suspicion = await self._locate(prepared, journal, in_thread)
                with stage("patches"):
                    job = await in_thread(journal.at("patches", self._request), prepared, reasons, suspicion)
                    if started is not None:
                        started(job)
                    expected.patches = 0
                    await self._scheduler.run(_Recorded(job, journal, "patch"), self._network)
                with stage("mask"):
                    answer = await in_thread(journal.at("mask", self._finish), job, work)
        return replace(answer, prediction=replace(answer.prediction, seconds=clock.seconds))

    @asynccontextmanager
    async def _memory(self, count: int, stage: _Stage) -> AsyncIterator[None]:
        """Hold memory for a scan."""
        try:
            with ExitStack() as waiting:
                waiting.enter_context(stage("wait"))
                async with self._budget.hold(count):
                    waiting.close()
                    self._metrics.held(self._budget.held_bytes)
                    yield
        finally:
            # Also of a scan that failed or was cancelled, after which there may be no further batch.
            self._metrics.held(self._budget.held_bytes)
            self._metrics.queued(self._scheduler.queued_s)

    async def _locate(self, prepared: Prepared, journal: Journal, in_thread: _InThread) -> Suspicion | None:
        """Run the locator, if the bundle has one; its patches share the scheduler."""
        locator = self._predictor.locator
        if locator is None or self._locating is None:
            return None
        request = await in_thread(journal.at("locator", locator.begin), prepared)
        await self._scheduler.run(_Recorded(request, journal, "patch of the locator"), self._locating)
        return await in_thread(journal.at("suspicion", locator.suspicion), request)

    @asynccontextmanager
    async def _local(self, work: Work) -> AsyncIterator[Work]:
        """Make the files of a work item available on this node within an `async with` block."""
        if not ray.is_initialized() or work.node == ray.get_runtime_context().get_node_id():
            yield work
            return
        if not work.stream:
            raise ResourceError("the gateway does not serve other nodes yet", do="retry in a few seconds")
        if self._copies is None:
            limit = self._args.serving.spool_limit_bytes
            self._copies = await asyncio.to_thread(Spool, self._args.spool_dir, limit, limit)
        copy = fetched(work, self._copies)
        here = await asyncio.to_thread(copy.__enter__)
        try:
            yield here
        except BaseException as error:
            await asyncio.to_thread(copy.__exit__, type(error), error, error.__traceback__)
            raise
        await asyncio.to_thread(copy.__exit__, None, None, None)

    def _prepare(self, work: Work) -> tuple[Prepared, tuple[str, ...]]:
        with work.body.open() as file:
            scan = read_open_volume(file, "upload", self._args.serving.max_volume_mb << 20)
        return self._predictor.prepare_checked(scan, "upload")

    def _request(
        self, prepared: Prepared, reasons: tuple[str, ...], suspicion: Suspicion | None
    ) -> SegmentationRequest:
        return self._predictor.request(prepared, mask_only=True, out_of_domain=reasons, suspicion=suspicion)

    def _finish(self, job: SegmentationRequest, work: Work) -> Answer:
        mask = job.mask()
        mask_gz = encode_nifti(mask, compress=True)
        work.write_result(mask_gz)
        prediction = Prediction(
            mask_gz=b"",
            volume_ml=float(mask.array.sum(dtype=int)) * mask.voxel_volume_ml,
            coverage=job.coverage(),
            digest=self._predictor.bundle.digest,
            version=self._args.version,
            model=self._args.model_name,
            out_of_domain=job.out_of_domain,
            uncertainty=job.uncertainty(mask),
        )
        return Answer(prediction, len(mask_gz))


class _InThread(Protocol):
    """Runs a function in one of the thread pools."""

    async def __call__(self, function: Callable[..., _Result], *arguments: Any) -> _Result:
        """As `_in_thread`."""


class _Recorded:
    """A patch job that records in a journal which patch is being run.

    Args:
        job: patch job of the scan.
        journal: journal of the scan.
        name: name of a patch in the journal.
    """

    def __init__(self, job: PatchJob, journal: Journal, name: str) -> None:
        self._job, self._journal, self._name = job, journal, name

    @property
    def remaining(self) -> int:
        return self._job.remaining

    def take(self) -> Patch:
        patch = self._job.take()
        self._journal.write(f"{self._name} {patch.number}")
        failpoint("serving.patch")
        return patch

    def put(self, number: int, logits: NDArray[float32]) -> None:
        self._job.put(number, logits)
        self._journal.wait()


async def _in_thread(pool: ThreadPoolExecutor, function: Callable[..., _Result], *arguments: Any) -> _Result:
    """Run a function in a pool. A cancelled caller waits until it has ended, as its memory is in use until then."""
    future = pool.submit(function, *arguments)
    try:
        return await asyncio.wrap_future(future)
    except asyncio.CancelledError:
        if not future.cancel() and not future.done():
            await asyncio.wait({asyncio.wrap_future(future)})
        raise


def _be_nice() -> None:
    # On Linux, niceness is that of a thread, and inherited by the threads that it starts.
    thread = threading.get_native_id()
    # Ray's workers have niceness 15 already, and only root may lower it.
    os.setpriority(os.PRIO_PROCESS, thread, os.getpriority(os.PRIO_PROCESS, thread) + _LARGE_NICENESS)


def _warm_predictor(args: AppArguments) -> Predictor:
    from gtvray.inference import Predictor
    from gtvray.models import Bundle

    if args.bundle is None:
        raise NotReadyError("no model has been promoted yet")
    bundle = Bundle.load(args.bundle)
    if args.digest not in (None, bundle.digest):
        raise BundleError("the bundle has another digest", where=args.bundle, expected=args.digest, found=bundle.digest)
    serving = args.serving
    predictor = Predictor(
        bundle,
        threads=max(1, int(serving.cpus_per_replica)),
        device="cuda" if serving.gpus_per_replica else "cpu",
    )
    predictor.warm()
    return predictor
