"""Moving the champion: under the lease, after the gate, with everything written down."""

from __future__ import annotations

import shlex
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gtvray.config import PromotionConfig
from gtvray.errors import BundleError, GateRefusedError, InputError, NotFoundError, NotReadyError
from gtvray.models import Bundle, verify_digest
from gtvray.promotion.decisions import Decision, DecisionLog
from gtvray.promotion.gate import Evidence, Judgement, judge
from gtvray.registry import CHAMPION, ModelVersion, Registry


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
        previous = require_champion(registry, log)
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
        NotFoundError: the version before was deleted.
        InputError: the champion was changed from outside.
        BundleError: its bundle is damaged.
    """
    with log.lease():
        current = require_champion(registry, log)
        standing = log.standing()
        if standing is None or standing.previous is None:
            raise NotReadyError("there is no champion to go back to", do="`gtvray models` lists what there is")
        version = _decided(registry, standing.previous, log.digest_of(standing.previous))
        if version is None:
            raise NotFoundError(
                "the version to go back to was deleted in MLflow",
                expected=f"version {standing.previous}",
                found=", ".join(known.version for known in registry.versions()) or "no versions",
                do="promote another bundle; the champion stays as it is",
            )
        registry.fetch(version)
        registry.point_champion(version.version)
        log.append(Decision("rolled_back", version.digest, version.version, current, {}))
    return version


def restore(registry: Registry, log: DecisionLog, bundles: Path, golden: Path) -> ModelVersion:
    """Make the champion what the last decision made it, after it was changed from outside.

    A version that was deleted is registered again, under a new number, from the bundle in the workspace.

    Args:
        registry: as it is.
        log: of decisions.
        bundles: the workspace's folder of fetched bundles, by digest.
        golden: the workspace's folder of golden cases, by digest.

    Raises:
        NotReadyError: nothing was decided.
        NotFoundError: the version was deleted, and its bundle is not in the workspace; or its run is gone.
        BundleError: the bundle is not the one that was decided on.
    """
    with log.lease():
        standing = log.standing()
        if standing is None or standing.version is None:
            raise NotReadyError("nothing was decided here, so there is nothing to restore", where=log.workspace)
        version = _decided(registry, standing.version, standing.digest)
        if version is not None:
            registry.fetch(version)
        else:
            version = _register_again(registry, standing.digest, bundles / standing.digest[:16], golden)
        if _standing_version(registry) == version.version == standing.version:
            return version
        before = standing.previous
        # A deleted model's numbers are given out again: what the number stands for now may be another bundle.
        if before is not None and _decided(registry, before, log.digest_of(before)) is None:
            before = None
        registry.point_champion(version.version)
        reason = {"reason": f"restored version {standing.version} after a change from outside the gate"}
        log.append(Decision("restored", standing.digest, version.version, before, reason))
    return version


def require_champion(registry: Registry, log: DecisionLog) -> str | None:
    """The champion's version; one that no decision made is refused, for its evidence is unknown.

    To be called before held-out cases are scored as well, since each look at them makes them worth less.

    Raises:
        InputError: the champion was changed from outside; the error says how to restore it.
    """
    found, standing = _standing_version(registry), log.standing()
    expected = standing.version if standing else None
    kept = found is None or standing is None or registry.get(found).digest == standing.digest
    if found == expected and kept:
        return found
    raise InputError(
        "the champion was changed from outside the gate",
        where=log.workspace,
        expected="no champion" if standing is None else f"version {expected}, bundle {standing.digest[:16]}",
        found=_change(registry, found, standing),
        do=_advice(log, standing),
    )


def _standing_version(registry: Registry) -> str | None:
    try:
        return registry.champion().version
    except NotReadyError:
        return None


def _change(registry: Registry, found: str | None, standing: Decision | None) -> str:
    if standing is not None and _decided(registry, standing.version, standing.digest) is None:
        left = "its registered model was deleted, too" if not registry.versions() else "other versions are there"
        return f"the version was deleted in MLflow; {left}"
    if found is None:
        return f"the alias {CHAMPION} was removed"
    return f"the alias {CHAMPION} points to version {found}"


def _advice(log: DecisionLog, standing: Decision | None) -> str:
    if standing is None:
        return (
            "work in the workspace whose decision made it champion, or remove the alias in MLflow's UI: "
            f"Models, the version, Aliases, {CHAMPION}"
        )
    return f"restore it: gtvray rollback --restore --workspace {shlex.quote(str(log.workspace))}"


def _decided(registry: Registry, version: str | None, digest: str | None) -> ModelVersion | None:
    """A version, if it is there and still the bundle that was decided on."""
    try:
        found = registry.get(version) if version is not None else None
    except NotFoundError:
        return None
    return found if found is not None and found.digest == digest else None


def _register_again(registry: Registry, digest: str, folder: Path, golden: Path) -> ModelVersion:
    if not folder.is_dir():
        raise NotFoundError(
            "the champion's version was deleted, and its bundle is not in this workspace",
            where=folder,
            expected=f"bundle {digest}",
            do="put a copy of the bundle's folder there, and run this again",
        )
    bundle = Bundle.load(folder)
    if bundle.digest != digest:
        raise BundleError("another bundle lies in its place", where=folder, expected=digest, found=bundle.digest)
    run_id = str(bundle.info["mlflow_run"])
    registry.require_run(run_id)
    version = registry.register(bundle, run_id)
    registry.restore_golden(version, golden / digest[:16])
    return version


def _plain(evidence: Evidence, judgement: Judgement) -> dict[str, Any]:
    return {**asdict(evidence), **asdict(judgement)}
