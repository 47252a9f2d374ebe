"""Shadow comparisons: a candidate segments a share of the answered requests, and its masks are compared and recorded.

A comparison starts only after the response was sent and while no other scan is in progress; there is at most one at a
time, and an arriving scan cancels it. A failed comparison never affects a request.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from starlette.background import BackgroundTask

from gtvray.config import ServingConfig
from gtvray.io import append_json_line
from gtvray.serving.arguments import AppArguments
from gtvray.serving.gateway.segmenter import Segmenter
from gtvray.serving.metrics import SHADOW_DICE, SHADOW_SCANS
from gtvray.serving.request_log import log_event
from gtvray.serving.shadow.comparison import mask_dice
from gtvray.serving.shadow.records import record_file
from gtvray.serving.transfer.spool import Body, Spool
from gtvray.serving.transfer.work import Prediction
from gtvray.serving.versions.served import Served

COMPARED, DROPPED, FAILED = "compared", "dropped", "failed"


class Shadow:
    """The comparisons of a gateway.

    Args:
        serving: settings with the share of requests and the time limit.
        served: state of the shadow version.
        records: file for the comparisons.
        spool: keeps the scan of a comparison.
        segmenter: counts the scans in progress, and calls the candidate.
        draw: returns a random number in [0, 1); a request is compared if it is below `serving.shadow_share`.
    """

    def __init__(
        self,
        serving: ServingConfig,
        served: Served,
        records: Path,
        spool: Spool,
        segmenter: Segmenter,
        *,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self._served, self._records = served, records
        self._share, self._limit_s = serving.shadow_share, serving.timeout_s
        self._spool, self._segmenter, self._draw = spool, segmenter, draw
        self._counts = {COMPARED: 0, DROPPED: 0, FAILED: 0}
        self._dice_sum = 0.0
        self._task: asyncio.Task[float] | None = None

    def in_use(self, app: str) -> int:
        """Number of comparisons in progress that belong to a version."""
        return self._served.in_use(app)

    def describe(self) -> dict[str, Any]:
        """Return the shadow's versions, and the outcomes of the requests chosen since this gateway started."""
        compared = self._counts[COMPARED]
        mean_dice = round(self._dice_sum / compared, 4) if compared else None
        return {**self._served.versions().as_dict(), "share": self._share, **self._counts, "mean_dice": mean_dice}

    def make_way(self) -> None:
        """Cancel the comparison in progress, as a scan has arrived."""
        if self._task is not None:
            self._task.cancel()

    def offer(self, body: Body, prediction: Prediction, request_id: str) -> BackgroundTask | None:
        """Decide whether a request that has been segmented is compared, and keep its scan if it is.

        Args:
            body: the scan's file, which its owner may remove afterwards.
            prediction: the prediction that was sent, with its mask.
            request_id: id of the request.

        Returns:
            the task to run after the response was sent; None if the request is not compared.
        """
        current = self._served.versions().current
        if current is None or current.digest == prediction.digest or self._draw() >= self._share:
            return None
        if self._segmenter.pending or (self._task is not None and not self._task.done()):
            self._count(DROPPED)
            return None
        kept = replace(body, path=self._spool.path(".shadow"))
        try:
            os.link(body.path, kept.path)
        except OSError as error:
            self._fail(error, request_id)
            return None
        answered = asyncio.Event()
        self._task = asyncio.create_task(self._compare(kept, prediction, request_id, answered))
        # Not in the task itself, which never starts if it is cancelled first.
        self._task.add_done_callback(partial(self._end, kept.path, request_id))

        async def begin() -> None:
            answered.set()

        return BackgroundTask(begin)

    async def _compare(self, body: Body, prediction: Prediction, request_id: str, answered: asyncio.Event) -> float:
        async with asyncio.timeout(self._limit_s):
            await answered.wait()
            began = time.monotonic()
            with self._served.pinned() as (_, model):
                found = await self._segmenter.segment_once(model, body, request_id)
            seconds = time.monotonic() - began
            dice = await asyncio.to_thread(mask_dice, prediction.mask_gz, found.mask_gz)
        record = {
            "at": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "number": self._counts[COMPARED] + 1,
            "request": request_id,
            "dice": dice,
            "volume_ml": {"served": prediction.volume_ml, "shadow": found.volume_ml},
            "seconds": {"served": sum(prediction.seconds.values()), "shadow": seconds},
            "version": {"served": prediction.version, "shadow": found.version},
            "digest": {"served": prediction.digest, "shadow": found.digest},
        }
        await asyncio.to_thread(append_json_line, self._records, record)
        return dice

    def _end(self, kept: Path, request_id: str, task: asyncio.Task[float]) -> None:
        with suppress(OSError):
            kept.unlink(missing_ok=True)
        if task.cancelled():
            self._count(DROPPED)
        elif (error := task.exception()) is not None:
            self._fail(error, request_id)
        else:
            self._dice_sum += task.result()
            SHADOW_DICE.observe(task.result())
            self._count(COMPARED)

    def _fail(self, error: BaseException, request_id: str) -> None:
        log_event("shadow_failed", request_id, logging.WARNING, kind=type(error).__name__)
        self._count(FAILED)

    def _count(self, outcome: str) -> None:
        self._counts[outcome] += 1
        SHADOW_SCANS.labels(outcome).inc()


def make_shadow(args: AppArguments, spool: Spool, segmenter: Segmenter) -> Shadow | None:
    """Return the shadow comparisons of the default model; None if the arguments specify no shadow version."""
    if args.shadow is None:
        return None
    served = Served(args.model_copy(update={"versions": args.shadow}), None)
    return Shadow(args.serving, served, record_file(args.shadow), spool, segmenter)
