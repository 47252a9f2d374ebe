"""Comparison of models and the baseline on the same cases: ranks and paired differences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

import numpy as np
from scipy.stats import rankdata

from gtvray.errors import InputError
from gtvray.evaluation.metrics import CaseScore
from gtvray.evaluation.statistics import FEWEST_CASES, paired_difference, smallest_difference

_SEED = 0
RANKED_BY = ("dsc", "hd95_mm")


@dataclass(frozen=True)
class Ranked:
    """Ranks of a model, counted from 1 for the best; equal means share the mean of their ranks.

    Attributes:
        name: the model.
        mean_dsc, mean_hd95_mm: means over all cases.
        dsc_rank, hd95_rank: rank by each mean.
        mean_rank: mean of both ranks, which orders the models.
    """

    name: str
    mean_dsc: float
    mean_hd95_mm: float
    dsc_rank: float
    hd95_rank: float
    mean_rank: float


@dataclass(frozen=True)
class Difference:
    """Paired difference of a score between two models: `model` minus `other`, case by case.

    Attributes:
        model, other: names of the models.
        metric: "dsc", where higher is better, or "hd95_mm", where lower is better.
        mean, low, high: mean difference with its 95 % interval.
        smallest: smallest mean difference that these cases would show with a power of 80 %.
    """

    model: str
    other: str
    metric: str
    mean: float
    low: float
    high: float
    smallest: float


@dataclass(frozen=True)
class Comparison:
    """Ranks of all models, and the differences of every pair by each of `RANKED_BY`; none below three cases."""

    ranking: tuple[Ranked, ...]
    differences: tuple[Difference, ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def compare(scores: Mapping[str, Sequence[CaseScore]]) -> Comparison:
    """Rank models and compute their paired differences, each pair in the given order.

    Args:
        scores: model -> its scores, of the same cases in any order.

    Raises:
        InputError: there is no case, or models were scored on different cases.
    """
    ranking = tuple(rank_models(scores))
    ordered = {name: sorted(of_model, key=lambda score: score.case_id) for name, of_model in scores.items()}
    enough = all(len(of_model) >= FEWEST_CASES for of_model in ordered.values())
    pairs = combinations(ordered, 2) if enough else ()
    differences = (_difference(ordered, model, other, metric) for model, other in pairs for metric in RANKED_BY)
    return Comparison(ranking, tuple(differences))


def rank_models(scores: Mapping[str, Sequence[CaseScore]]) -> list[Ranked]:
    """Rank models as StructSeg 2019 ranked teams: by mean DSC, mean HD95 and the mean of both ranks; best first.

    Args:
        scores: model -> its scores, of the same cases.

    Raises:
        InputError: there is no model or no case, or models were scored on different cases.
    """
    cases = [sorted(score.case_id for score in of_model) for of_model in scores.values()]
    if not cases or not cases[0]:
        raise InputError("no scores to rank", do="score at least one model on at least one case")
    if any(other != cases[0] for other in cases):
        raise InputError(
            "models can only be ranked on the same cases",
            found=f"{[len(ids) for ids in cases]} cases",
            do="score every model on all cases",
        )
    dsc = [float(np.mean([score.dsc for score in of_model])) for of_model in scores.values()]
    hd95 = [float(np.mean([score.hd95_mm for score in of_model])) for of_model in scores.values()]
    dsc_ranks, hd95_ranks = rankdata([-value for value in dsc]), rankdata(hd95)
    ranked = [
        Ranked(name, *means, float(first), float(second), float(first + second) / 2)
        for name, means, first, second in zip(scores, zip(dsc, hd95, strict=True), dsc_ranks, hd95_ranks, strict=True)
    ]
    return sorted(ranked, key=lambda model: (model.mean_rank, model.dsc_rank))


def _difference(scores: Mapping[str, Sequence[CaseScore]], model: str, other: str, metric: str) -> Difference:
    first, second = ([float(getattr(score, metric)) for score in scores[name]] for name in (model, other))
    paired = paired_difference(first, second, seed=_SEED)
    smallest = smallest_difference([a - b for a, b in zip(first, second, strict=True)])
    return Difference(model, other, metric, paired.mean, paired.low, paired.high, smallest)
