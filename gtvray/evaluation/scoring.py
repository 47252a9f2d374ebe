"""Scoring of a predictor and the baseline on cases, each on its own grid."""

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
    """A case with its scores.

    Attributes:
        case: the case.
        score: scores of the model's mask.
        baseline: scores of the baseline's mask, if a baseline was scored.
        mask: file of the model's mask.
        milliseconds: time of preprocessing, network and restoring, without file access.
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
        predictor: a warm predictor.
        cases: cases with reference masks.
        masks: folder for the predicted masks, `<case>.nii.gz`.
        baseline: scored on the same cases.
        report: called with (done, total) after each case.

    Raises:
        DataError: a case cannot be used.
    """
    scored = []
    for case in cases:
        scan = read_volume(case.image)
        reference = read_label(case, scan)
        start = time.perf_counter()
        mask = predictor.predict(scan, case.image)
        milliseconds = round(1000 * (time.perf_counter() - start))
        path = masks / f"{case.case_id}.nii.gz"
        write_volume(path, mask)
        of_baseline = None if baseline is None else score_case(case.case_id, reference, baseline.predict(scan))
        scored.append(ScoredCase(case, score_case(case.case_id, reference, mask), of_baseline, path, milliseconds))
        if report is not None:
            report(len(scored), len(cases))
    return scored
