"""The gate: a candidate must beat a baseline that never looks at the scan, on cases no choice has looked at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gtvray.config import PromotionConfig
from gtvray.datasets import looks_warning
from gtvray.errors import InputError
from gtvray.evaluation import CaseScore, PairedDifference, paired_difference

_SEED = 0


@dataclass(frozen=True)
class Evidence:
    """What the gate looks at.

    Attributes:
        digest: the candidate's.
        data: fingerprint of the dataset.
        candidate: its scores on held-out cases.
        baseline: the baseline's scores on the same cases, in the same order.
        loads_fresh: whether another process loaded the bundle and answered a fixed patch alike.
        looks: how many different subjects have been scored on these cases so far.
    """

    digest: str
    data: str
    candidate: tuple[CaseScore, ...]
    baseline: tuple[CaseScore, ...]
    loads_fresh: bool
    looks: int

    def __post_init__(self) -> None:
        mine, other = _ids(self.candidate), _ids(self.baseline)
        if mine != other:
            raise InputError("candidate and baseline were scored on other cases", expected=mine, found=other)


@dataclass(frozen=True)
class Judgement:
    """The gate's word.

    Attributes:
        accepted: whether the candidate may be promoted.
        reasons: why not; empty when accepted.
        warnings: what a reader should know all the same.
        difference: DSC of the candidate less that of the baseline, paired, with its 95 % interval.
    """

    accepted: bool
    reasons: tuple[str, ...]
    warnings: tuple[str, ...]
    difference: PairedDifference | None


def judge(evidence: Evidence, config: PromotionConfig) -> Judgement:
    """Accept a candidate, or say every reason why not."""
    reasons, warnings = [], []
    difference = None
    if len(evidence.candidate) < config.min_cases:
        reasons.append(f"{len(evidence.candidate)} held-out cases; {config.min_cases} are needed")
    else:
        difference = paired_difference(
            [score.dsc for score in evidence.candidate], [score.dsc for score in evidence.baseline], seed=_SEED
        )
        if difference.low <= config.min_difference_low:
            reasons.append(
                f"DSC over the baseline is {difference.mean:+.3f} with a lower bound of {difference.low:+.3f}; "
                f"it must exceed {config.min_difference_low:+.3f}"
            )
    if not evidence.loads_fresh:
        reasons.append("a fresh process could not load the bundle, or answered otherwise")
    missed = sum(score.missed for score in evidence.candidate)
    if missed:
        warnings.append(f"{missed} of {len(evidence.candidate)} tumours missed")
    worn = looks_warning(evidence.looks)
    if worn is not None:
        warnings.append(worn)
    return Judgement(not reasons, tuple(reasons), tuple(warnings), difference)


def _ids(scores: Sequence[CaseScore]) -> list[str]:
    return [score.case_id for score in scores]
