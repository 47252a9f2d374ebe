"""Prediction of scans in this process, with the next loaded and the last written while the network runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from gtvray.batch.steps import PredictorOpener, Result, Scan
from gtvray.errors import GtvrayError
from gtvray.inference import overlapped
from gtvray.runtime import ProgressReporter


def predict_here(
    scans: Sequence[Scan],
    started: Callable[[Scan], None],
    ended: Callable[[Result], None],
    *,
    opener: PredictorOpener,
    show: ProgressReporter,
) -> None:
    """Predict scans in this process.

    Args:
        scans: scans, predicted in this order.
        opener: loads the model.
        show: receives the start of the stage.
        started: called before a scan is read.
        ended: called with each result, in any thread, as soon as its mask is written.
    """
    show.begin("predict", f"{len(scans)} scans")
    steps = opener()

    def announced() -> Iterator[Scan]:
        for scan in scans:
            started(scan)
            yield scan

    def load(scan: Scan) -> tuple[Scan, Any]:
        return scan, steps.load(scan)

    def run(loaded: tuple[Scan, Any]) -> Any:
        return steps.run(*loaded)

    def store(scan: Scan, ran: Any) -> None:
        # Here, and not when it is collected: an interrupted run stores what is ready without collecting it.
        ended(steps.store(scan, ran))

    for scan, outcome in overlapped(announced(), load, run, store):
        if isinstance(outcome, GtvrayError):
            ended(Result.failed(scan, outcome))
