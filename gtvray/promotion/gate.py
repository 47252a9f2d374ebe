"""The promotion gate: a candidate must beat a baseline that ignores the scan, on cases held out from every choice."""

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
    """The input of the gate.

    Attributes:
        digest: digest of the candidate.
        data: fingerprint of the dataset.
        candidate: the candidate's scores on held-out cases.
        baseline: the baseline's scores on the same cases, in the same order.
        loads_fresh: whether a fresh process loaded the bundle and computed bit-identical logits for a fixed patch.
        looks: number of models scored on any of these cases so far, the candidate included.

    Raises:
        InputError: candidate and baseline have scores of different cases.
    """

    digest: str
    data: str
    candidate: tuple[CaseScore, ...]
    baseline: tuple[CaseScore, ...]
    loads_fresh: bool
    looks: int

    def __post_init__(self) -> None:
        expected, found = _ids(self.candidate), _ids(self.baseline)
        if expected != found:
            raise InputError("candidate and baseline were scored on different cases", expected=expected, found=found)


@dataclass(frozen=True)
class Judgement:
    """The decision of the gate.

    Attributes:
        accepted: whether the candidate may be promoted.
        reasons: reasons for a refusal; empty when accepted.
        warnings: limits of the evidence that do not refuse the candidate.
        difference: paired difference in DSC, candidate minus baseline, with its 95 % interval; None with too few cases.
    """

    accepted: bool
    reasons: tuple[str, ...]
    warnings: tuple[str, ...]
    difference: PairedDifference | None


def judge(evidence: Evidence, config: PromotionConfig) -> Judgement:
    """Accept a candidate, or refuse it with every reason."""
    reasons, warnings = [], []
    difference = None
    if len(evidence.candidate) < config.min_cases:
        reasons.append(f"{len(evidence.candidate)} held-out cases; at least {config.min_cases} are required")
    else:
        difference = paired_difference(
            [score.dsc for score in evidence.candidate], [score.dsc for score in evidence.baseline], seed=_SEED
        )
        if difference.low <= config.min_difference_low:
            reasons.append(
                f"DSC minus the baseline's is {difference.mean:+.3f}, lower bound {difference.low:+.3f}; "
                f"the bound must exceed {config.min_difference_low:+.3f}"
            )
    if not evidence.loads_fresh:
        reasons.append("a fresh process could not load the bundle, or computed different logits")
    missed = sum(score.missed for score in evidence.candidate)
    if missed:
        warnings.append(f"{missed} of {len(evidence.candidate)} tumours missed")
    overused = looks_warning(evidence.looks)
    if overused is not None:
        warnings.append(overused)
    return Judgement(not reasons, tuple(reasons), tuple(warnings), difference)


def _ids(scores: Sequence[CaseScore]) -> list[str]:
    return [score.case_id for score in scores]
