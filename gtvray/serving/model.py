"""The Model deployment: a bundle, one scheduler and one inference thread per replica.

A replica becomes ready only if it reproduces the golden cases of its model's promotion.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from gtvray.errors import BundleError, GtvrayError, NotReadyError, NotReproducedError
from gtvray.inference import StageClock
from gtvray.io import decode_volume, encode_nifti
from gtvray.serving.arguments import AppArguments
from gtvray.serving.request_log import log_event
from gtvray.serving.scheduler import PatchScheduler

if TYPE_CHECKING:
    from gtvray.inference import Coverage, Predictor, SegmentationRequest


_REPORT_EVERY_S = 1.0


@dataclass(frozen=True)
class Prediction:
    """A replica's result: the mask as .nii.gz, and its metadata.

    `seconds` is the time of each stage: waiting for memory, preparing, running the patches, and writing the mask.
    """

    mask_gz: bytes
    volume_ml: float
    coverage: Coverage
    digest: str
    version: str
    out_of_domain: tuple[str, ...] = ()
    seconds: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class GoldenCheck:
    """Result of the golden cases on a replica.

    Attributes:
        outcome: none, the model has no golden cases; identical, every mask is equal voxel for voxel; reproduced, every
            mask is within the tolerance for another stack; or failed.
        reason: why it failed, without a path, as /readyz needs no token.
    """

    outcome: Literal["none", "identical", "reproduced", "failed"]
    reason: str | None = None

    def require(self) -> None:
        """Raise if the check failed.

        Raises:
            NotReproducedError: this replica predicts other masks than those of the promotion.
        """
        if self.outcome == "failed":
            raise NotReproducedError(
                "the model's golden cases are not reproduced here",
                expected="the promotion's masks",
                found=self.reason,
                do="serve it with the versions listed in golden.json, with which it was promoted, or promote it again",
            )


class Model:
    """Decodes and prepares scans in several threads and infers in one; patches never leave the process.

    Args:
        args: the application's arguments.

    Raises:
        BundleError: the bundle is damaged, or its digest is not `args.digest`.
    """

    def __init__(self, args: AppArguments) -> None:
        self._args = args
        self._predictor = _warm_predictor(args)
        # A failed check does not raise: Serve would restart the replica forever, and the reason would be lost.
        self._golden = check_golden(args.golden, self._predictor)
        self._scheduler = PatchScheduler(self._predictor.forward, self._predictor.batch_size)
        # Bounds the decoded scans in memory; further requests wait as encoded bytes.
        self._memory_slots = asyncio.Semaphore(args.serving.scans_in_memory)
        self._threads = ThreadPoolExecutor(args.serving.scans_in_memory, thread_name_prefix="scan")

    async def predict(
        self, content: bytes, request_id: str, started: Callable[[SegmentationRequest], None] | None = None
    ) -> Prediction:
        """Predict the mask of a NIfTI or NRRD file.

        Args:
            content: the file.
            request_id: id for the log.
            started: called with the request once it is prepared.

        Raises:
            InputError: the file is not a valid CT volume.
            NotReproducedError: this replica failed the golden cases.
        """
        self._golden.require()
        loop, clock = asyncio.get_running_loop(), StageClock()
        began = time.monotonic()
        try:
            with clock.stage("wait"):
                await self._memory_slots.acquire()
            try:
                with clock.stage("prepare"):
                    job = await loop.run_in_executor(self._threads, self._begin, content)
                if started is not None:
                    started(job)
                with clock.stage("patches"):
                    await self._scheduler.run(job)
                with clock.stage("mask"):
                    prediction = await loop.run_in_executor(self._threads, self._finish, job)
            finally:
                self._memory_slots.release()
        except asyncio.CancelledError:
            log_event("cancelled", request_id, logging.WARNING)
            raise
        log_event("predicted", request_id, patches=job.patches, ms=round(1000 * (time.monotonic() - began)))
        return replace(prediction, seconds=clock.seconds)

    async def predict_reporting(self, content: bytes, request_id: str) -> AsyncIterator[tuple[int, int] | Prediction]:
        """Predict as `predict`, and report progress from the same replica without a call per patch.

        Yields:
            the patches processed and the patches known so far, about once a second; last, the prediction.

        Raises:
            as `predict`.
        """
        begun: list[SegmentationRequest] = []
        task = asyncio.create_task(self.predict(content, request_id, begun.append))
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
            "golden": self._golden.outcome,
            "labels": bundle.labels,
            "preprocessing": bundle.preprocessing.model_dump(mode="json"),
            "inference": bundle.inference.model_dump(mode="json"),
        }

    def check_health(self) -> None:
        """Raise if inference is stalled; Serve calls this periodically and replaces a replica that raises."""
        self._scheduler.check_progress(self._args.serving.timeout_s)

    def _begin(self, content: bytes) -> SegmentationRequest:
        scan = decode_volume(content, "upload", self._args.serving.max_volume_mb << 20)
        return self._predictor.begin(scan, "upload", mask_only=True)

    def _finish(self, job: SegmentationRequest) -> Prediction:
        mask = job.mask()
        return Prediction(
            mask_gz=encode_nifti(mask, compress=True),
            volume_ml=float(mask.array.sum(dtype=int)) * mask.voxel_volume_ml,
            coverage=job.coverage(),
            digest=self._predictor.bundle.digest,
            version=self._args.version,
            out_of_domain=job.out_of_domain,
        )


def check_golden(folder: Path | None, predictor: Predictor) -> GoldenCheck:
    """Run the golden cases once and log the outcome.

    Args:
        folder: folder of the golden cases; None if the model has none.
        predictor: warm predictor of the model, with the threads that it serves with.
    """
    check = GoldenCheck("none") if folder is None else _run_golden(folder, predictor)
    log_event("golden", "start", logging.ERROR if check.outcome == "failed" else logging.INFO, result=check.outcome)
    return check


def _run_golden(folder: Path, predictor: Predictor) -> GoldenCheck:
    from gtvray.evaluation import REPRODUCED_DICE, reproduce

    try:
        results = reproduce(folder, predictor)
    except GtvrayError as error:
        log_event("golden_error", "start", logging.ERROR, kind=type(error).__name__)
        return GoldenCheck("failed", error.what)
    failed = [result for result in results if not result.ok]
    for result in failed:
        log_event("golden_case", "start", logging.ERROR, case=result.case, dice=f"{result.dice:.5f}")
    if failed:
        cases = ", ".join(f"golden case {result.case}: Dice {result.dice:.5f}" for result in failed)
        return GoldenCheck("failed", f"{cases}; each must reach {REPRODUCED_DICE:g}")
    return GoldenCheck("identical" if all(result.identical for result in results) else "reproduced")


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
