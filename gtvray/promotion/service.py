"""Promotion of a bundle under the lease: the decision is recorded, the alias is moved, the decision is completed."""

from __future__ import annotations

from pathlib import Path

from gtvray import __version__
from gtvray.config import PromotionConfig
from gtvray.errors import BundleError, GateRefusedError, InputError
from gtvray.failpoints import failpoint
from gtvray.io import atomic_dir
from gtvray.models import Bundle, verify_digest
from gtvray.promotion.champion import require_champion, settle_unfinished
from gtvray.promotion.commit import code_commit
from gtvray.promotion.gate import Evidence, Judgement, Request, judge
from gtvray.promotion.record import write_record
from gtvray.registry import LICENCE_TAG, OVERRIDE_TAG, Decision, DecisionLog, Lease, ModelVersion, Registry


def promote(
    bundle: Bundle,
    run_id: str,
    evidence: Evidence,
    *,
    config: PromotionConfig,
    registry: Registry,
    log: DecisionLog,
    records: Path,
    request: Request | None = None,
    golden: Path | None = None,
) -> tuple[ModelVersion, Judgement, Path]:
    """Register a bundle with its golden cases and make it the champion, if the gate accepts it.

    Args:
        bundle: the candidate.
        run_id: MLflow run that trained it.
        evidence: its scores, and those of the champion and the baseline.
        config: thresholds of the gate.
        registry: the registry to promote in.
        log: log of decisions.
        records: folder for the record of the decision, which also goes to MLflow.
        request: how the promotion was asked for; by default for superiority, without an override.
        golden: folder of its golden cases; None to register the bundle without them.

    Returns:
        the version that is now champion, the decision of the gate, and the folder of the record.

    Raises:
        GateRefusedError: the gate refuses it; the refusal and its evidence are in the log.
        BundleError: the bundle has changed since it was scored.
        InputError: the evidence belongs to another bundle or an earlier champion, or the champion was changed outside
            the gate.
        ResourceError: another process took over the lease; the champion is unchanged.
    """
    request = request or Request(log.by)
    _require_same_bundle(bundle, evidence)
    judgement = judge(evidence, config, request)
    with log.lease() as lease:
        settle_unfinished(registry, log)
        champion = require_champion(registry, log)
        _require_same_champion(champion, evidence)
        reason, commit = request.override if judgement.overridden else "", code_commit()
        version = None
        if judgement.accepted:
            version = _register(bundle, run_id, registry, golden, judgement, override=reason, commit=commit)
        decision = Decision(
            "promoted" if judgement.accepted else "refused",
            bundle.digest,
            version.version if version is not None else None,
            champion.version if champion is not None else None,
            reason=reason,
            cases=evidence.cases,
        )
        decision = log.signed(decision, lease)
        record = records / f"{lease.number:04d}-{decision.kind}"
        with atomic_dir(record) as temporary:
            write_record(
                temporary,
                decision,
                bundle,
                evidence=evidence,
                judgement=judgement,
                request=request,
                config=config,
                commit=commit,
            )
        if version is None:
            log.settle(log.add(decision, lease, record), "completed")
            log.looks.complete(evidence.look)
            raise GateRefusedError(
                "the promotion gate refused the candidate",
                where=bundle.digest[:16],
                found="; ".join(judgement.reasons),
                do=f"train longer or on more cases; the champion is unchanged; record: {record}",
            )
        change_champion(registry, log, lease, version, decision=decision, record=record)
        log.looks.complete(evidence.look)
    return version, judgement, record


def change_champion(
    registry: Registry,
    log: DecisionLog,
    lease: Lease,
    version: ModelVersion,
    *,
    decision: Decision,
    record: Path,
) -> Decision:
    """Verify a version's files, record the decision, move the alias, and mark the decision as completed.

    Raises:
        BundleError: the files are not those registered; nothing is recorded or changed.
        ResourceError: another process took over the lease; the champion is unchanged.
    """
    registry.fetch(version)
    made = log.add(decision, lease, record)
    failpoint("promotion.recorded")
    lease.require_held()
    registry.point_champion(version.version)
    failpoint("promotion.moved")
    return log.settle(made, "completed")


def _register(
    bundle: Bundle,
    run_id: str,
    registry: Registry,
    golden: Path | None,
    judgement: Judgement,
    *,
    override: str,
    commit: str,
) -> ModelVersion:
    data = bundle.info.get("training_data", {})
    tags = {
        "gtvray.version": __version__,
        "gtvray.commit": commit,
        "gtvray.data": str(data.get("digest", "")),
        LICENCE_TAG: str(data.get("licence", "not stated")),
        "gtvray.sweep_run": str(bundle.info.get("sweep_run", "")),
        "gtvray.rule": judgement.rule,
        "gtvray.overridden": str(judgement.overridden).lower(),
        OVERRIDE_TAG: override,
    }
    version = registry.register(bundle, run_id, tags)
    if golden is not None:
        registry.add_golden(version, golden)
    failpoint("promotion.registered")
    return registry.get(version.version)


def _require_same_bundle(bundle: Bundle, evidence: Evidence) -> None:
    if evidence.digest != bundle.digest:
        raise InputError(
            "the evidence belongs to another bundle",
            expected=bundle.digest,
            found=evidence.digest,
            do="score this bundle with `gather_evidence`",
        )
    if (digest := verify_digest(bundle.folder)) != bundle.digest:
        raise BundleError(
            "the bundle has changed since it was scored",
            where=bundle.folder,
            expected=bundle.digest,
            found=digest,
            do="promote it again, so that the changed bundle is scored",
        )


def _require_same_champion(champion: ModelVersion | None, evidence: Evidence) -> None:
    digest = champion.digest if champion is not None else ""
    if digest != evidence.champion_digest:
        raise InputError(
            "the champion has changed since the candidate was scored",
            expected=evidence.champion_digest or "no champion",
            found=digest or "no champion",
            do="promote it again, so that it is compared with the current champion",
        )
