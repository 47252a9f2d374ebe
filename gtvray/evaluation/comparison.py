"""Several models, and the baseline, held against one another on the same cases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

from gtvray.evaluation.metrics import CaseScore
from gtvray.evaluation.ranking import Ranked, rank_models
from gtvray.evaluation.statistics import FEWEST_CASES, paired_difference, smallest_difference

_SEED = 0
RANKED_BY = ("dsc", "hd95_mm")


@dataclass(frozen=True)
class Difference:
    """A score of one model less that of another, case by case.

    Attributes:
        model, other: their names.
        metric: "dsc", where more is better, or "hd95_mm", where less is.
        mean, low, high: with the 95 % interval.
        smallest: the mean difference these cases would show, with a power of 80 %.
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
    """Ranks of all, and each pair's differences by each ranked score; none for fewer than three cases."""

    ranking: tuple[Ranked, ...]
    differences: tuple[Difference, ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def compare(scores: Mapping[str, Sequence[CaseScore]]) -> Comparison:
    """Rank models and take their differences, each pair in the order given.

    Args:
        scores: model -> its scores, of the same cases in any order.

    Raises:
        InputError: no case, or models scored on different cases.
    """
    ranking = tuple(rank_models(scores))
    ordered = {name: sorted(of_model, key=lambda score: score.case_id) for name, of_model in scores.items()}
    enough = all(len(of_model) >= FEWEST_CASES for of_model in ordered.values())
    pairs = combinations(ordered, 2) if enough else ()
    differences = (_difference(ordered, model, other, metric) for model, other in pairs for metric in RANKED_BY)
    return Comparison(ranking, tuple(differences))


def _difference(scores: Mapping[str, Sequence[CaseScore]], model: str, other: str, metric: str) -> Difference:
    mine, theirs = ([float(getattr(score, metric)) for score in scores[name]] for name in (model, other))
    paired = paired_difference(mine, theirs, seed=_SEED)
    smallest = smallest_difference([a - b for a, b in zip(mine, theirs, strict=True)])
    return Difference(model, other, metric, paired.mean, paired.low, paired.high, smallest)
