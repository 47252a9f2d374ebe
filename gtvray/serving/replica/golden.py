"""The golden cases of a promotion: a replica that does not reproduce them stays unready."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from gtvray.errors import GtvrayError, NotReproducedError
from gtvray.serving.request_log import log_event

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
