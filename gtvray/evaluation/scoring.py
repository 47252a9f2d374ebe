"""Scoring of a predictor and the baseline on cases, each on its own grid."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gtvray.datasets import Case, read_label
from gtvray.evaluation.baseline import MeanPositionBaseline
from gtvray.evaluation.metrics import CaseScore, score_case
from gtvray.io import check_outputs, read_volume, write_output_volume

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


def check_masks(
    cases: Sequence[Case],
    masks: Iterable[Path],
    *,
    overwrite: bool = True,
    closed: Iterable[Path] = (),
    folders: Iterable[Path] = (),
) -> None:
    """Refuse to score cases if a mask would replace anything but an earlier, unchanged output of gtvray.

    Args:
        cases: to be scored.
        masks: folders that their masks are written to.
        overwrite: earlier outputs may be replaced.
        closed: folders that must not change.
        folders: written as a whole beside the masks, such as a report.

    Raises:
        InputError: naming what is in the way; nothing has been written.
    """
    check_outputs(
        [_mask_file(folder, case) for folder in masks for case in cases],
        inputs=[path for case in cases for path in (case.image, case.label) if path is not None],
        closed=closed,
        folders=folders,
        overwrite=overwrite,
    )


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
        masks: folder for the predicted masks, `<case>.nii.gz`; earlier masks of gtvray are replaced.
        baseline: scored on the same cases.
        report: called with (done, total) after each case.

    Raises:
        DataError: a case cannot be used.
        InputError: another file is in the position of a mask; `check_masks` detects that beforehand.
    """
    scored = []
    for case in cases:
        scan = read_volume(case.image)
        reference = read_label(case, scan)
        start = time.perf_counter()
        mask = predictor.predict(scan, case.image)
        milliseconds = round(1000 * (time.perf_counter() - start))
        path = _mask_file(masks, case)
        write_output_volume(path, mask, overwrite=True)
        of_baseline = None if baseline is None else score_case(case.case_id, reference, baseline.predict(scan))
        scored.append(ScoredCase(case, score_case(case.case_id, reference, mask), of_baseline, path, milliseconds))
        if report is not None:
            report(len(scored), len(cases))
    return scored


def _mask_file(folder: Path, case: Case) -> Path:
    return folder / f"{case.case_id}.nii.gz"
