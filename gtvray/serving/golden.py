"""The condition of readiness: a replica reproduces the golden cases of its model's promotion before it answers."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from gtvray.errors import GtvrayError, NotReproducedError
from gtvray.serving.logs import log_event

if TYPE_CHECKING:
    from gtvray.inference import Predictor


@dataclass(frozen=True)
class GoldenCheck:
    """How a replica came off.

    Attributes:
        word: none, as no golden cases came with the model; identical, voxel for voxel; reproduced, as well as another
            stack must; or failed.
        found: what failed, without a path, for /readyz asks for no token.
    """

    word: Literal["none", "identical", "reproduced", "failed"]
    found: str | None = None

    def require(self) -> None:
        """Pass unless it failed.

        Raises:
            NotReproducedError: the masks made here are not those of the promotion.
        """
        if self.word == "failed":
            raise NotReproducedError(
                "the model's golden cases are not reproduced here",
                expected="the promotion's masks",
                found=self.found,
                do="serve it with the versions it was promoted with, which golden.json names, or promote it again here",
            )


def check_golden(folder: Path | None, predictor: Predictor) -> GoldenCheck:
    """Run the golden cases once, and log how they came off.

    Args:
        folder: theirs; None if the model came without.
        predictor: of the model to be served, warm, with the threads it is to serve with.
    """
    check = GoldenCheck("none") if folder is None else _run(folder, predictor)
    log_event("golden", "start", logging.ERROR if check.word == "failed" else logging.INFO, result=check.word)
    return check


def _run(folder: Path, predictor: Predictor) -> GoldenCheck:
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
