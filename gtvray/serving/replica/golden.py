"""The golden cases of a promotion: a replica that does not reproduce them stays unready."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ray import serve
from ray.serve.exceptions import RayServeException

from gtvray.errors import GtvrayError, NotReproducedError
from gtvray.serving.request_log import log_event
from gtvray.serving.scaling import count_replicas
from gtvray.serving.versions.pointer import Pointer

if TYPE_CHECKING:
    from gtvray.inference import Predictor


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
            NotReproducedError: the masks of this replica differ from those of the promotion.
        """
        if self.outcome == "failed":
            raise NotReproducedError(
                "the model's golden cases are not reproduced here",
                expected="the promotion's masks",
                found=self.reason,
                do="install the package versions listed in golden.json, or promote the model again",
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


def require_beside_others(check: GoldenCheck, versions: Path | None) -> None:
    """Keep a replica that failed the check out of a model that other replicas serve, as when one is added or replaced.

    Serve sends no request to a replica whose constructor raises, and starts it again later.

    Args:
        check: of this replica.
        versions: the pointer to the served version; None if the version is fixed. A version that is not served yet is
            rejected by the version manager, which needs the reason.

    Raises:
        NotReproducedError: it failed, and other replicas serve the model.
    """
    if check.outcome != "failed":
        return
    try:
        app = serve.get_replica_context().app_name
    except RayServeException:
        # Not in a replica, but in a process of its own.
        return
    current = Pointer(versions).read().current if versions is not None else None
    counts = count_replicas(app)
    in_service = versions is None or (current is not None and current.app == app)
    if in_service and counts is not None and counts.running:
        check.require()


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
