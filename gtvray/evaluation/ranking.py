"""Several models side by side on the same cases, ranked as the StructSeg 2019 challenge ranked teams."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import rankdata

from gtvray.errors import InputError
from gtvray.evaluation.metrics import CaseScore


@dataclass(frozen=True)
class Ranked:
    """A model's place: ranks count from 1, the best; equal means share the mean of their ranks.

    Attributes:
        name: the model.
        mean_dsc, mean_hd95_mm: over all cases.
        dsc_rank, hd95_rank: its rank by each.
        mean_rank: the mean of both, which decides.
    """

    name: str
    mean_dsc: float
    mean_hd95_mm: float
    dsc_rank: float
    hd95_rank: float
    mean_rank: float


def rank_models(scores: Mapping[str, Sequence[CaseScore]]) -> list[Ranked]:
    """Rank models by mean DSC and by mean HD95, and by the mean of the two ranks; the best first.

    Args:
        scores: model -> its scores, of the same cases.

    Raises:
        InputError: no model, no case, or models scored on different cases.
    """
    cases = [sorted(score.case_id for score in of_model) for of_model in scores.values()]
    if not cases or not cases[0]:
        raise InputError("no scores to rank")
    if any(other != cases[0] for other in cases):
        raise InputError("models can only be ranked on the same cases", found=f"{[len(c) for c in cases]} cases")
    dsc = [float(np.mean([score.dsc for score in of_model])) for of_model in scores.values()]
    hd95 = [float(np.mean([score.hd95_mm for score in of_model])) for of_model in scores.values()]
    dsc_ranks, hd95_ranks = rankdata([-value for value in dsc]), rankdata(hd95)
    ranked = [
        Ranked(name, *means, float(first), float(second), float(first + second) / 2)
        for name, means, first, second in zip(scores, zip(dsc, hd95, strict=True), dsc_ranks, hd95_ranks, strict=True)
    ]
    return sorted(ranked, key=lambda model: (model.mean_rank, model.dsc_rank))
