"""A predictor over cases: masks on each case's own grid, scored there, beside the baseline."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gtvray.datasets import Case, read_label
from gtvray.evaluation.baseline import MeanPositionBaseline
from gtvray.evaluation.metrics import CaseScore, score_case
from gtvray.io import read_volume, write_volume

if TYPE_CHECKING:
    from gtvray.inference import Predictor


@dataclass(frozen=True)
class ScoredCase:
    """A case with its figures.

    Attributes:
        case: the case.
        score: of the model.
        baseline: of the baseline, if there is one.
        mask: file of the model's mask.
        milliseconds: preparing, network and restoring, without files.
    """

    case: Case
    score: CaseScore
    baseline: CaseScore | None
    mask: Path
    milliseconds: int


def score_cases(
    predictor: Predictor,
    cases: Sequence[Case],
    masks: Path,
    baseline: MeanPositionBaseline | None = None,
    report: Callable[[int, int], None] | None = None,
) -> list[ScoredCase]:
    """Predict and score cases.

    Args:
        predictor: a warm model.
        cases: with masks to score against.
        masks: folder that the predicted masks are written to, `<case>.nii.gz`.
        baseline: scored on the same cases.
        report: told (done, all) after each case.

    Raises:
        DataError: a case is not usable.
    """
    scored = []
    for case in cases:
        scan = read_volume(case.image)
        reference = read_label(case, scan)
        began = time.perf_counter()
        mask = predictor.predict(scan, case.image)
        milliseconds = round(1000 * (time.perf_counter() - began))
        path = masks / f"{case.case_id}.nii.gz"
        write_volume(path, mask)
        floor = score_case(case.case_id, reference, baseline.predict(scan)) if baseline is not None else None
        scored.append(ScoredCase(case, score_case(case.case_id, reference, mask), floor, path, milliseconds))
        if report is not None:
            report(len(scored), len(cases))
    return scored
