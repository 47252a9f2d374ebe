"""The record of a decision: JSON with all evidence, and a readable document for archiving.

Rollbacks, restorations and adoptions have no evidence; their records state who changed the champion, when and why.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gtvray import NOTICE, __version__
from gtvray.config import PromotionConfig
from gtvray.evaluation import CaseScore, PairedDifference, stack
from gtvray.io import Table, write_json
from gtvray.models import Bundle
from gtvray.promotion.card import model_card, override_notice
from gtvray.promotion.commit import code_commit
from gtvray.promotion.document import Document, Section
from gtvray.promotion.gate import NOT_MEASURED, Evidence, Judgement, Request
from gtvray.registry import RECORD, Decision

SCHEMA_VERSION = 1
_ROLE = (
    "The cases are held out: fixed when the split was made, and used neither for training nor for model selection. "
    "Their scores evaluate these models; out-of-fold scores evaluate a training procedure and are not used here."
)
_OUTCOMES = {
    "promoted": "Promoted",
    "refused": "Refused",
    "rolled_back": "Rolled back",
    "restored": "Restored",
    "adopted": "Adopted without the gate",
}
_RULES = {
    "baseline": "first promotion: better than the baseline",
    "superiority": "better than the champion",
    "non-inferiority": "not worse than the champion by the margin, for a named gain",
}


def write_record(
    folder: Path,
    decision: Decision,
    bundle: Bundle,
    *,
    evidence: Evidence,
    judgement: Judgement,
    request: Request,
    config: PromotionConfig,
    commit: str,
) -> None:
    """Write the record of a decision of the gate, and the model card of a promoted model.

    Args:
        folder: existing folder; gets `decision.json`, `.md` and `.html`, and `card.md` and `.html`.
        decision: the decision, not yet in the log.
        bundle: the candidate.
        evidence: input of the gate.
        judgement: decision of the gate.
        request: request of the promotion.
        config: thresholds of the gate.
        commit: git commit of gtvray's code; empty if unknown.
    """
    record = {
        **_head(decision, commit),
        "request": asdict(request),
        "cases_role": _ROLE,
        "thresholds": config.model_dump(mode="json"),
        "candidate": {name: bundle.info.get(name) for name in ("training_data", "mlflow_run", "derived_from")},
        "evidence": asdict(evidence),
        "judgement": asdict(judgement),
    }
    write_json(folder / RECORD, record)
    document = _document(decision, bundle, evidence, judgement=judgement, request=request, config=config)
    document.write(folder, "decision")
    if decision.kind == "promoted":
        model_card(bundle, evidence, judgement, request).write(folder, "card")


def write_change(folder: Path, decision: Decision) -> None:
    """Write the record of a change of the champion that was decided without evidence.

    Args:
        folder: existing folder; gets `decision.json`, `.md` and `.html`.
        decision: a rollback, restoration or adoption, signed but not yet in the log.
    """
    write_json(folder / RECORD, {**_head(decision, code_commit()), "evidence": None, "judgement": None})
    Document(
        title=f"{_OUTCOMES[decision.kind]}: model {decision.digest[:12]}",
        lead=[
            f"Version {decision.version} is the champion; the champion before: {_before(decision)}. No model was "
            "scored for this decision."
        ],
        sections=[
            Section(
                "Decision",
                table=Table(
                    ("", ""), [*_made(decision, decision.by), ("reason", decision.reason or "none"), _software()]
                ),
            )
        ],
    ).write(folder, "decision")


def _head(decision: Decision, commit: str) -> dict[str, Any]:
    """Return the entries that all records have."""
    names = ("number", "at", "kind", "digest", "version", "previous", "by", "reason")
    return {
        "schema": SCHEMA_VERSION,
        **{name: getattr(decision, name) for name in names},
        "gtvray": __version__,
        "commit": commit,
        "stack": stack(),
        "notice": NOTICE,
    }


def _document(
    decision: Decision,
    bundle: Bundle,
    evidence: Evidence,
    *,
    judgement: Judgement,
    request: Request,
    config: PromotionConfig,
) -> Document:
    return Document(
        title=f"{_OUTCOMES[decision.kind]}: model {decision.digest[:12]}",
        lead=[*override_notice(judgement, request), _finding(decision, judgement)],
        sections=[
            Section("Decision", table=Table(("", ""), list(_decided(decision, request)))),
            Section(
                "Models and cases", [_ROLE], table=Table(("", ""), list(_facts(bundle, evidence, judgement, request)))
            ),
            *([Section("Reasons for refusal", points=judgement.reasons)] if judgement.reasons else []),
            *([Section("Limits of the evidence", points=judgement.warnings)] if judgement.warnings else []),
            Section(
                "Paired differences",
                list(_tests(judgement, evidence.looks, config)),
                table=Table(("candidate minus", "mean", "low", "high", "level"), list(_differences(judgement))),
            ),
            Section("Guards", table=Table(("guard", "met", "found"), list(_guards(evidence, judgement)))),
            Section("Largest scan", table=Table(("model", "time (s)", "memory (MB)", "host"), list(_costs(evidence)))),
            Section("Cases, largest loss first", table=_cases(evidence)),
        ],
    )


def _finding(decision: Decision, judgement: Judgement) -> str:
    """Summarise the decision and the result of the primary test."""
    promoted = decision.kind == "promoted"
    outcome = "The candidate is promoted." if promoted else "The candidate is refused; the champion is unchanged."
    reference, over = "champion", judgement.over_champion
    if over is None:
        reference, over = "baseline", judgement.difference
    if over is None:
        return f"{outcome} There were too few cases for a test."
    interval = f"{100 * over.level:.4g} % interval {over.low:+.3f} to {over.high:+.3f}"
    return f"{outcome} Mean DSC of the candidate minus that of the {reference}: {over.mean:+.3f} ({interval})."


def _decided(decision: Decision, request: Request) -> Iterator[tuple[str, str]]:
    yield from _made(decision, request.by)
    yield "override", request.override if decision.reason else "none"
    yield _software()


def _made(decision: Decision, by: str) -> Iterator[tuple[str, str]]:
    yield "number", str(decision.number)
    yield "date", decision.at
    yield "by", by
    yield "version", decision.version or "not registered"
    yield "champion before", _before(decision)


def _before(decision: Decision) -> str:
    return f"version {decision.previous}" if decision.previous is not None else "none"


def _software() -> tuple[str, str]:
    return "software", ", ".join(f"{name} {value}" for name, value in stack().items())


def _facts(bundle: Bundle, evidence: Evidence, judgement: Judgement, request: Request) -> Iterator[tuple[str, str]]:
    data, inference = bundle.info.get("training_data", {}), bundle.inference
    yield "candidate", f"bundle {evidence.digest}"
    yield "champion", f"bundle {evidence.champion_digest}" if evidence.champion_digest else "none"
    yield "rule", _RULES[judgement.rule]
    yield "named gain", request.gain or "none"
    yield "training data", f"fingerprint {evidence.data}; licence: {data.get('licence', 'not stated')}"
    yield "held-out cases", f"{len(evidence.candidate)}, digest {evidence.cases[:16]}"
    undecided = f"; {evidence.undecided_looks} without a decision" if evidence.undecided_looks else ""
    yield "models scored on them", f"{evidence.looks}, this one included{undecided}"
    yield "inference", f"{inference.backend}, {inference.precision}, {inference.mode}"


def _tests(judgement: Judgement, looks: int, config: PromotionConfig) -> Iterator[str]:
    over = judgement.over_champion
    if over is not None:
        bound = -config.noninferiority_margin if judgement.rule == "non-inferiority" else 0.0
        yield (
            f"Primary test: the lower bound of DSC over the champion must exceed {bound:+.3f}. Its level of "
            f"{100 * over.level:.4g} % is corrected for {looks} model(s) scored on these cases."
        )
    elif judgement.difference is not None:
        yield (
            f"Primary test: the lower bound of DSC over the baseline must exceed {config.min_difference_low:+.3f}. Its "
            f"level of {100 * judgement.difference.level:.4g} % is corrected for {looks} model(s) scored on these "
            "cases."
        )
    if judgement.signed_rank_p is not None:
        p = judgement.signed_rank_p
        yield f"Wilcoxon signed-rank test that the candidate's DSC exceeds the champion's, one-sided: p = {p:.3g}."
    if judgement.detectable is not None:
        yield (
            f"With this number of cases and this spread, a mean difference of {judgement.detectable:.3f} in DSC would "
            "be detected with a power of 80 %."
        )


def _differences(judgement: Judgement) -> Iterator[tuple[str, ...]]:
    rows: tuple[tuple[str, PairedDifference | None, str], ...] = (
        ("champion, DSC", judgement.over_champion, "+.3f"),
        ("champion, HD95 (mm)", judgement.hd95_over_champion, "+.1f"),
        ("baseline, DSC", judgement.difference, "+.3f"),
    )
    for name, found, digits in rows:
        if found is not None:
            values = (format(value, digits) for value in (found.mean, found.low, found.high))
            yield name, *values, f"{100 * found.level:.4g} %"


def _guards(evidence: Evidence, judgement: Judgement) -> Iterator[tuple[str, str, str]]:
    yield "a fresh process loads the bundle and computes the same", _met(evidence.loads_fresh), ""
    yield "a fresh process reproduces the golden cases", _met(evidence.golden), ""
    for guard in judgement.guards:
        yield guard.name, _met(guard.passed), guard.found


def _costs(evidence: Evidence) -> Iterator[tuple[str, str, str, str]]:
    costs = {"candidate": evidence.cost}
    if evidence.champion_digest:
        costs["champion"] = evidence.champion_cost
    for name, cost in costs.items():
        if cost is None:
            yield name, NOT_MEASURED, NOT_MEASURED, ""
        else:
            yield name, f"{cost.seconds:.2f}", f"{cost.peak_mb:.0f}", cost.host


def _cases(evidence: Evidence) -> Table:
    champion: Sequence[CaseScore | None] = evidence.champion or [None] * len(evidence.candidate)
    rows = sorted(
        zip(evidence.candidate, champion, evidence.baseline, strict=True),
        key=lambda row: row[0].dsc - (row[1] or row[2]).dsc,
    )
    return Table(
        ("case", "DSC", "champion", "baseline", "HD95 (mm)", "champion HD95 (mm)"),
        [
            (
                one.case_id,
                f"{one.dsc:.3f}",
                f"{other.dsc:.3f}" if other else None,
                f"{base.dsc:.3f}",
                f"{one.hd95_mm:.1f}",
                f"{other.hd95_mm:.1f}" if other else None,
            )
            for one, other, base in rows
        ],
    )


def _met(passed: bool | None) -> str:
    return "not measured" if passed is None else "yes" if passed else "no"
