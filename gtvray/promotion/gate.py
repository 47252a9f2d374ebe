"""The promotion gate: a candidate must beat the champion, and a baseline that ignores the scan, on held-out cases.

The primary test is the paired difference in DSC to the champion, case by case, or to the baseline if there is no
champion. Its lower confidence bound must exceed zero (superiority), or minus the margin if the candidate has a named
gain (non-inferiority). HD95, missed tumours, single
cases that get worse, time and memory are additional guards.

Repeated tests on the same cases eventually find a better model by chance, so the k-th model that is scored on them is
tested at the one-sided level a / (k (k + 1)). These levels sum to a, which bounds the probability that any of all
promotions is of a model that is no better than its champion (alpha spending: Tian and Ramdas, Online control of the
familywise error rate, Stat. Methods Med. Res. 30, 2021). With the default of 5 % the first model is tested by the usual
95 % interval.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from gtvray.config import PromotionConfig
from gtvray.datasets import looks_warning
from gtvray.errors import InputError
from gtvray.evaluation import (
    CaseScore,
    PairedDifference,
    detectable_difference,
    paired_difference,
    signed_rank_p,
    smallest_difference,
)

Rule = Literal["baseline", "superiority", "non-inferiority"]
Gain = Literal["latency", "memory", "retired-data"]
NOT_MEASURED = "not measured here"
_SEED = 0
# Maximum probability of accepting a model that is worse by the margin.
_NONINFERIORITY_RATE = 0.01
_FEW_CASES = 20
# Standard deviation of the paired difference in DSC that is assumed before anything is scored; two trainings of the
# same recipe on 33 real cases had 0.03, two recipes 0.05 to 0.09.
_ASSUMED_DEVIATION = 0.06
# The same for the difference to the mean-position baseline; five recorded models had 0.11 to 0.15 on these cases.
_ASSUMED_BASELINE_DEVIATION = 0.14


@dataclass(frozen=True)
class Cost:
    """Time and memory of a fresh process that predicts the largest held-out scan, network loaded and warm.

    Attributes:
        seconds: time of the scan, from volume to mask.
        peak_mb: largest resident memory of the process; memory of a GPU is not included.
        host: processor, number of threads, and GPU if one was used.
    """

    seconds: float
    peak_mb: float
    host: str


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
        cases: digest of the scans of the held-out cases.
        champion_digest: digest of the champion; empty if there is none.
        champion: the champion's scores on the same cases, in the same order; empty if there is none.
        golden: whether the fresh process reproduced the golden cases; None if none were written.
        cost: of the candidate; None if not measured, as for replicas with a GPU on a host without one.
        champion_cost: of the champion, in the same way; None if not measured.
        undecided_looks: how many of `looks` were scored by the gate without a decision, such as by a killed process.
        look: MLflow run that recorded this look; empty if none did.

    Raises:
        InputError: the models have scores of different cases.
    """

    digest: str
    data: str
    candidate: tuple[CaseScore, ...]
    baseline: tuple[CaseScore, ...]
    loads_fresh: bool
    looks: int
    cases: str = ""
    champion_digest: str = ""
    champion: tuple[CaseScore, ...] = ()
    golden: bool | None = None
    cost: Cost | None = None
    champion_cost: Cost | None = None
    undecided_looks: int = 0
    look: str = ""

    def __post_init__(self) -> None:
        expected = _ids(self.candidate)
        for name, scores in (("baseline", self.baseline), ("champion", self.champion)):
            if (scores or name == "baseline" or self.champion_digest) and _ids(scores) != expected:
                raise InputError(
                    f"candidate and {name} were scored on different cases", expected=expected, found=_ids(scores)
                )


@dataclass(frozen=True)
class Request:
    """Who requests a promotion, and by which rule.

    Attributes:
        by: name of the person or account.
        gain: gain of the candidate; if set, non-inferiority is tested instead of superiority.
        override: reason for promoting a candidate that the gate refuses; empty to respect the gate.
    """

    by: str
    gain: Gain | None = None
    override: str = ""


@dataclass(frozen=True)
class Guard:
    """A requirement in addition to the primary test.

    Attributes:
        name: what is required.
        passed: whether it is met; None if it was not measured.
        found: the measured values.
    """

    name: str
    passed: bool | None
    found: str


@dataclass(frozen=True)
class Judgement:
    """The decision of the gate.

    Attributes:
        accepted: whether the candidate may be promoted.
        reasons: reasons for a refusal; also stated if it was overridden.
        warnings: limits of the evidence; they do not lead to a refusal.
        difference: paired difference in DSC, candidate minus baseline, with its 95 % interval, or that of the corrected
            level without a champion; None with too few cases.
        rule: the primary test.
        over_champion: paired difference in DSC, candidate minus champion; None without champion or with too few cases.
        hd95_over_champion: the same for HD95 in mm, with its 95 % interval.
        guards: requirements in addition to the primary test.
        signed_rank_p: one-sided p value of the Wilcoxon signed-rank test, candidate over champion.
        detectable: smallest mean DSC difference to the champion that these cases detect with a power of 80 %.
        overridden: whether a named person accepted the candidate despite `reasons`.
    """

    accepted: bool
    reasons: tuple[str, ...]
    warnings: tuple[str, ...]
    difference: PairedDifference | None
    rule: Rule = "baseline"
    over_champion: PairedDifference | None = None
    hd95_over_champion: PairedDifference | None = None
    guards: tuple[Guard, ...] = ()
    signed_rank_p: float | None = None
    detectable: float | None = None
    overridden: bool = False


def level_at(looks: int, rate: float) -> float:
    """Two-sided confidence level for the model that is the `looks`-th to be scored on its cases.

    Args:
        looks: number of models scored on any of these cases, this one included.
        rate: probability of any false promotion over all of them.
    """
    return 1 - 2 * rate / (looks * (looks + 1))


def expected_detectable(cases: int, looks: int, config: PromotionConfig, *, champion: bool = True) -> float:
    """Estimate, before scoring, the smallest mean DSC gain that the primary test detects with a power of 80 %.

    Args:
        cases: number of held-out cases, at least two.
        looks: as in `level_at`.
        config: thresholds of the gate.
        champion: whether the gain is over a champion; otherwise it is over the baseline, with a larger assumed spread.
    """
    deviation = _ASSUMED_DEVIATION if champion else _ASSUMED_BASELINE_DEVIATION
    return detectable_difference(deviation, cases, level_at(looks, config.false_promotion_rate))


def judge(evidence: Evidence, config: PromotionConfig, request: Request | None = None) -> Judgement:
    """Accept a candidate, or refuse it with every reason.

    Args:
        evidence: what was measured.
        config: thresholds.
        request: how the promotion was asked for; by default for superiority, without an override.
    """
    request = request or Request("")
    rule: Rule = "baseline"
    if evidence.champion_digest:
        rule = "non-inferiority" if request.gain else "superiority"
    integrity = _integrity(evidence)
    enough = len(evidence.candidate) >= config.min_cases
    if not enough:
        reasons = [f"{len(evidence.candidate)} held-out cases; at least {config.min_cases} are required"]
        return _decided(evidence, request, [*integrity, *reasons], integrity, Judgement(False, (), (), None, rule))
    # Without a champion this is the primary test, so its level is the one that is corrected for the number of looks.
    level = 0.95 if evidence.champion_digest else level_at(evidence.looks, config.false_promotion_rate)
    dsc = [score.dsc for score in evidence.candidate]
    baseline = [score.dsc for score in evidence.baseline]
    difference = paired_difference(dsc, baseline, seed=_SEED, level=level, cautious=True)
    reasons = []
    if difference.low <= config.min_difference_low:
        reasons.append(
            f"DSC minus the baseline's is {difference.mean:+.3f}, lower bound {difference.low:+.3f} at "
            f"{100 * level:.4g} % ({_looks(evidence)}); the bound must exceed {config.min_difference_low:+.3f}"
        )
    draft = Judgement(False, (), (), difference, rule, guards=tuple(_budgets(evidence, config)))
    if evidence.champion_digest:
        draft, refusal = _compare(evidence, config, request, draft)
        reasons += [refusal] if refusal else []
    reasons += [f"{guard.name}: {guard.found}" for guard in draft.guards if guard.passed is False]
    return _decided(evidence, request, [*integrity, *reasons], integrity, draft)


def _compare(
    evidence: Evidence, config: PromotionConfig, request: Request, draft: Judgement
) -> tuple[Judgement, str | None]:
    """Add the comparison with the champion, and return the primary test's reason for a refusal."""
    ours, theirs = ([score.dsc for score in scores] for scores in (evidence.candidate, evidence.champion))
    inferior = draft.rule == "non-inferiority"
    rate = _NONINFERIORITY_RATE if inferior else config.false_promotion_rate
    level = level_at(evidence.looks, rate)
    bound = -config.noninferiority_margin if inferior else 0.0
    over = paired_difference(ours, theirs, seed=_SEED, level=level, cautious=True)
    hd95 = paired_difference(
        [score.hd95_mm for score in evidence.candidate],
        [score.hd95_mm for score in evidence.champion],
        seed=_SEED,
        cautious=True,
    )
    guards = (*_champion_guards(evidence, config, hd95), *_gains(evidence, request), *draft.guards)
    differences = [one - other for one, other in zip(ours, theirs, strict=True)]
    judgement = replace(
        draft,
        over_champion=over,
        hd95_over_champion=hd95,
        guards=guards,
        signed_rank_p=signed_rank_p(ours, theirs),
        detectable=smallest_difference(differences),
    )
    if over.low > bound:
        return judgement, None
    return judgement, (
        f"DSC minus the champion's is {over.mean:+.3f}, lower bound {over.low:+.3f} at {100 * level:.4g} % "
        f"({_looks(evidence)}); {draft.rule} requires a bound above {bound:+.3f}"
    )


def _champion_guards(evidence: Evidence, config: PromotionConfig, hd95: PairedDifference) -> list[Guard]:
    pairs = list(zip(evidence.candidate, evidence.champion, strict=True))
    ours, theirs = sum(_misses(one) for one, _ in pairs), sum(_misses(other) for _, other in pairs)
    failed = [
        f"{one.case_id} {other.dsc:.3f} to {one.dsc:.3f}"
        for one, other in pairs
        if one.dsc < config.min_case_dsc <= other.dsc
    ]
    increase = f"{hd95.mean:+.1f} mm ({hd95.low:+.1f} to {hd95.high:+.1f})"
    return [
        Guard(
            f"mean HD95 at most {config.max_hd95_increase_mm:g} mm above the champion's",
            hd95.mean <= config.max_hd95_increase_mm,
            increase,
        ),
        Guard("no more missed tumours than the champion", ours <= theirs, f"{ours}, the champion {theirs}"),
        Guard(
            f"no case below DSC {config.min_case_dsc:g} that the champion passes",
            not failed,
            ", ".join(failed) or "none",
        ),
    ]


def _gains(evidence: Evidence, request: Request) -> list[Guard]:
    """Require a measured gain in time or memory; `retired-data` is declared by the requester and not measured."""
    if request.gain not in ("latency", "memory"):
        return []
    name = f"less {'time' if request.gain == 'latency' else 'memory'} than the champion, the named gain"
    one, other = evidence.cost, evidence.champion_cost
    if one is None or other is None:
        return [Guard(name, False, "not measured")]
    if request.gain == "latency":
        return [Guard(name, one.seconds < other.seconds, f"{one.seconds:.2f} s, the champion {other.seconds:.2f} s")]
    return [Guard(name, one.peak_mb < other.peak_mb, f"{one.peak_mb:.0f} MB, the champion {other.peak_mb:.0f} MB")]


def _budgets(evidence: Evidence, config: PromotionConfig) -> list[Guard]:
    """The budgets for time and memory, on the host of the promotion."""
    cost = evidence.cost
    measured = {
        "time": (config.max_seconds, "s", cost.seconds if cost else None),
        "memory": (config.max_peak_mb, "MB", cost.peak_mb if cost else None),
    }
    guards = []
    for name, (limit, unit, value) in measured.items():
        if limit is None:
            continue
        found = f"{value:.4g} {unit} on {cost.host}" if cost is not None else NOT_MEASURED
        guards.append(Guard(f"{name} at most {limit:g} {unit}", None if value is None else value <= limit, found))
    return guards


def _integrity(evidence: Evidence) -> list[str]:
    """Return the reasons that cannot be overridden: the loaded bundle differs from the one that was scored."""
    reasons = []
    if not evidence.loads_fresh:
        reasons.append("a fresh process could not load the bundle, or computed different logits")
    if evidence.golden is False:
        reasons.append("a fresh process did not reproduce the golden cases")
    return reasons


def _decided(
    evidence: Evidence, request: Request, reasons: list[str], integrity: list[str], draft: Judgement
) -> Judgement:
    overridden = bool(reasons and request.override and not integrity)
    warnings = tuple(_warnings(evidence, draft))
    accepted = overridden or not reasons
    return replace(draft, accepted=accepted, reasons=tuple(reasons), warnings=warnings, overridden=overridden)


def _warnings(evidence: Evidence, draft: Judgement) -> list[str]:
    warnings = []
    missed, count = sum(map(_misses, evidence.candidate)), len(evidence.candidate)
    if missed:
        warnings.append(f"{missed} of {count} tumours missed")
    overused = looks_warning(evidence.looks)
    if overused is not None:
        warnings.append(overused)
    if draft.over_champion is None:
        return warnings
    if count < _FEW_CASES:
        warnings.append(f"only {count} held-out cases: differences below {draft.detectable:.3f} cannot be detected")
    superior = draft.over_champion.low > 0
    if draft.signed_rank_p is not None and superior != (2 * draft.signed_rank_p < 1 - draft.over_champion.level):
        warnings.append(f"the signed-rank test disagrees with the mean difference: p = {draft.signed_rank_p:.2g}")
    return warnings


def _looks(evidence: Evidence) -> str:
    return f"model {evidence.looks} scored on these cases"


def _misses(score: CaseScore) -> bool:
    """Return whether the tumour was missed: the mask is empty or does not overlap it."""
    return score.missed or score.dsc == 0


def _ids(scores: Sequence[CaseScore]) -> list[str]:
    return [score.case_id for score in scores]
