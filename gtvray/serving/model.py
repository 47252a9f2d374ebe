"""The Model deployment: a warm bundle, one scheduler and one inference thread in each replica."""

from __future__ import annotations

import asyncio
import logging
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gtvray.errors import BundleError, NotReadyError
from gtvray.io import decode_volume, encode_nifti
from gtvray.serving.arguments import AppArguments
from gtvray.serving.golden import check_golden
from gtvray.serving.logs import log_event
from gtvray.serving.scheduler import PatchScheduler

if TYPE_CHECKING:
    from gtvray.inference import Coverage, Predictor, SegmentationRequest


@dataclass(frozen=True)
class Prediction:
    """What a replica answers: the mask as .nii.gz, and what is to be known about it."""

    mask_gz: bytes
    volume_ml: float
    coverage: Coverage
    digest: str
    version: str
    out_of_domain: tuple[str, ...] = ()


class Model:
    """Decodes and prepares in a few threads, infers in one; patches never leave the process.

    Args:
        args: the application's arguments.

    Raises:
        BundleError: the bundle is damaged, or not the one of `args.digest`.
    """

    def __init__(self, args: AppArguments) -> None:
        self._args = args
        self._predictor = _warm_predictor(args)
        # A replica that fails stays, to say why: Serve would start one that raised again and again.
        self._golden = check_golden(args.golden, self._predictor)
        self._scheduler = PatchScheduler(self._predictor.forward, self._predictor.batch_size)
        # A place is a decoded scan in memory; the others wait as bytes.
        self._places = asyncio.Semaphore(args.serving.scans_in_memory)
        self._threads = ThreadPoolExecutor(args.serving.scans_in_memory, thread_name_prefix="scan")

    async def predict(self, content: bytes, request_id: str) -> Prediction:
        """The mask of a NIfTI or NRRD file.

        Raises:
            InputError: it is not a sound CT.
            NotReproducedError: no mask of this replica is to be used.
        """
        self._golden.require()
        loop, began = asyncio.get_running_loop(), time.monotonic()
        try:
            async with self._places:
                job = await loop.run_in_executor(self._threads, self._begin, content)
                await self._scheduler.run(job)
                prediction = await loop.run_in_executor(self._threads, self._finish, job)
        except asyncio.CancelledError:
            log_event("cancelled", request_id, logging.WARNING)
            raise
        log_event("predicted", request_id, patches=job.patches, ms=round(1000 * (time.monotonic() - began)))
        return prediction

    async def describe(self) -> dict[str, Any]:
        """The model in words; an answer means that it is warm and does what it was promoted for.

        Raises:
            NotReproducedError: it gives other masks here.
        """
        self._golden.require()
        bundle = self._predictor.bundle
        return {
            "digest": bundle.digest,
            "version": self._args.version,
            "golden": self._golden.word,
            "labels": bundle.labels,
            "preprocessing": bundle.preprocessing.model_dump(mode="json"),
            "inference": bundle.inference.model_dump(mode="json"),
        }

    def check_health(self) -> None:
        """Asked by Serve every few seconds; it replaces a replica that raises."""
        self._scheduler.check(self._args.serving.timeout_s)

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


def _warm_predictor(args: AppArguments) -> Predictor:
    from gtvray.inference import Predictor
    from gtvray.models import Bundle

    if args.bundle is None:
        raise NotReadyError("nothing is promoted yet")
    bundle = Bundle.load(args.bundle)
    if args.digest not in (None, bundle.digest):
        raise BundleError("another bundle than asked for", where=args.bundle, expected=args.digest, found=bundle.digest)
    serving = args.serving
    predictor = Predictor(
        bundle,
        threads=max(1, int(serving.cpus_per_replica)),
        device="cuda" if serving.gpus_per_replica else "cpu",
    )
    predictor.warm()
    return predictor
