"""Moving the champion: under the lease, after the gate, with everything written down."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from gtvray.config import PromotionConfig
from gtvray.errors import BundleError, GateRefusedError, InputError, NotReadyError
from gtvray.models import Bundle, verify_digest
from gtvray.promotion.decisions import Decision, DecisionLog
from gtvray.promotion.gate import Evidence, Judgement, judge
from gtvray.registry import ModelVersion, Registry


def promote(
    bundle: Bundle,
    run_id: str,
    evidence: Evidence,
    *,
    config: PromotionConfig,
    registry: Registry,
    log: DecisionLog,
    golden: Path | None = None,
) -> tuple[ModelVersion, Judgement]:
    """Register a bundle and make it the champion, if the gate accepts it; its golden cases go with it.

    Raises:
        GateRefusedError: it does not; the refusal and its evidence are in the log.
        BundleError: the bundle has changed since it was scored.
        InputError: the evidence is another bundle's.
    """
    if evidence.digest != bundle.digest:
        raise InputError("evidence is another bundle's", expected=bundle.digest, found=evidence.digest)
    if (digest := verify_digest(bundle.folder)) != bundle.digest:
        raise BundleError("another bundle lies in its place", where=bundle.folder, expected=bundle.digest, found=digest)
    judgement = judge(evidence, config)
    with log.lease():
        previous = _champion(registry, log)
        if not judgement.accepted:
            log.append(Decision("refused", bundle.digest, None, previous, _plain(evidence, judgement)))
            raise GateRefusedError(
                "the promotion gate refused the candidate",
                where=bundle.digest[:16],
                found="; ".join(judgement.reasons),
                do="train longer or on more cases; the champion stays as it was",
            )
        version = registry.register(bundle, run_id)
        if golden is not None:
            registry.add_golden(version, golden)
        standing = log.standing()
        if standing is not None and version.version == previous:
            # The champion once more: the way back leads to the one before it still.
            previous = standing.previous
        registry.fetch(version)
        registry.point_champion(version.version)
        log.append(Decision("promoted", bundle.digest, version.version, previous, _plain(evidence, judgement)))
    return version, judgement


def rollback(registry: Registry, log: DecisionLog) -> ModelVersion:
    """Make the champion before this one the champion again.

    Raises:
        NotReadyError: there was none before.
        BundleError: its bundle is damaged.
    """
    with log.lease():
        current = _champion(registry, log)
        standing = log.standing()
        if standing is None or standing.previous is None:
            raise NotReadyError("there is no champion to go back to", do="`gtvray models` lists what there is")
        version = registry.get(standing.previous)
        registry.fetch(version)
        registry.point_champion(version.version)
        log.append(Decision("rolled_back", version.digest, version.version, current, {}))
    return version


def _champion(registry: Registry, log: DecisionLog) -> str | None:
    """The champion's version; one that no decision made is refused, for its evidence is unknown.

    Raises:
        InputError: the alias was moved from outside.
    """
    try:
        version = registry.champion().version
    except NotReadyError:
        version = None
    standing = log.standing()
    expected = standing.version if standing else None
    if version != expected:
        raise InputError(
            "the champion was changed from outside the gate",
            expected=f"version {expected or 'none'}",
            found=f"version {version or 'none'}",
            do="set the alias back, or begin a new decision log after looking into it",
        )
    return version


def _plain(evidence: Evidence, judgement: Judgement) -> dict[str, Any]:
    return {**asdict(evidence), **asdict(judgement)}
