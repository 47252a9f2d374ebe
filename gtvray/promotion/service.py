"""Promotion, rollback and restoration of the champion: each under the lease, each recorded in the decision log."""

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
    """Register a bundle with its golden cases and make it the champion, if the gate accepts it.

    Args:
        bundle: the candidate.
        run_id: MLflow run that trained it.
        evidence: its scores and those of the baseline.
        config: thresholds of the gate.
        registry: the registry to promote in.
        log: log of decisions.
        golden: folder of its golden cases; None registers it without.

    Raises:
        GateRefusedError: the gate refuses it; the refusal and its evidence are in the log.
        BundleError: the bundle has changed since it was scored.
        InputError: the evidence belongs to another bundle, or the champion was changed outside the gate.
    """
    if evidence.digest != bundle.digest:
        raise InputError("the evidence belongs to another bundle", expected=bundle.digest, found=evidence.digest)
    if (digest := verify_digest(bundle.folder)) != bundle.digest:
        raise BundleError(
            "the bundle has changed since it was scored", where=bundle.folder, expected=bundle.digest, found=digest
        )
    judgement = judge(evidence, config)
    with log.lease():
        previous = require_champion(registry, log)
        if not judgement.accepted:
            log.append(Decision("refused", bundle.digest, None, previous, _plain(evidence, judgement)))
            raise GateRefusedError(
                "the promotion gate refused the candidate",
                where=bundle.digest[:16],
                found="; ".join(judgement.reasons),
                do="train longer or on more cases; the champion is unchanged",
            )
        version = registry.register(bundle, run_id)
        if golden is not None:
            registry.add_golden(version, golden)
        current = log.current()
        if current is not None and version.version == previous:
            # The champion is promoted again: a rollback must still lead to its predecessor.
            previous = current.previous
        registry.fetch(version)
        registry.point_champion(version.version)
        log.append(Decision("promoted", bundle.digest, version.version, previous, _plain(evidence, judgement)))
    return version, judgement


def rollback(registry: Registry, log: DecisionLog) -> ModelVersion:
    """Make the previous champion the champion again.

    Raises:
        NotReadyError: there is no previous champion.
        NotFoundError: its version was deleted.
        InputError: the champion was changed outside the gate.
        BundleError: its bundle is damaged.
    """
    with log.lease():
        champion = require_champion(registry, log)
        current = log.current()
        if current is None or current.previous is None:
            raise NotReadyError("there is no previous champion", do="`gtvray models` lists the registered versions")
        version = _find_version(registry, current.previous, log.digest_of(current.previous))
        if version is None:
            raise NotFoundError(
                "the previous champion's version was deleted in MLflow",
                expected=f"version {current.previous}",
                found=", ".join(known.version for known in registry.versions()) or "no versions",
                do="promote another bundle; the champion is unchanged",
            )
        registry.fetch(version)
        registry.point_champion(version.version)
        log.append(Decision("rolled_back", version.digest, version.version, champion, {}))
    return version


def restore(registry: Registry, log: DecisionLog, bundles: Path, golden: Path) -> ModelVersion:
    """Restore the champion of the last decision after a change outside the gate.

    A deleted version is registered again, under a new number, from the bundle in the workspace.

    Args:
        registry: the registry that was changed.
        log: log of decisions.
        bundles: the workspace's folder of fetched bundles, by digest.
        golden: the workspace's folder of golden cases, by digest.

    Raises:
        NotReadyError: the log has no promotion.
        NotFoundError: the version was deleted and its bundle is not in the workspace, or its run does not exist.
        InputError: its run was deleted.
        BundleError: the bundle is not the one that was decided on.
    """
    with log.lease():
        current = log.current()
        if current is None or current.version is None:
            raise NotReadyError("no champion to restore: nothing was promoted in this workspace", where=log.workspace)
        version = _find_version(registry, current.version, current.digest)
        if version is not None:
            registry.fetch(version)
        else:
            version = _register_again(registry, current.digest, bundles / current.digest[:16], golden)
        if _champion_version(registry) == version.version == current.version:
            return version
        before = current.previous
        # MLflow reuses the version numbers of a deleted model: the number may now belong to another bundle.
        if before is not None and _find_version(registry, before, log.digest_of(before)) is None:
            before = None
        registry.point_champion(version.version)
        reason = {"reason": f"restored version {current.version} after a change outside the gate"}
        log.append(Decision("restored", current.digest, version.version, before, reason))
    return version


def require_champion(registry: Registry, log: DecisionLog) -> str | None:
    """Return the champion's version, or None; refuse a champion that no decision made, since it has no evidence.

    Call it before held-out cases are scored, too: every scoring (a "look" in the ledger) weakens their later use.

    Raises:
        InputError: the champion was changed outside the gate; the error says how to restore it.
    """
    found, current = _champion_version(registry), log.current()
    expected = current.version if current else None
    unchanged = found is None or current is None or registry.get(found).digest == current.digest
    if found == expected and unchanged:
        return found
    raise InputError(
        "the champion was changed outside the gate",
        where=log.workspace,
        expected="no champion" if current is None else f"version {expected}, bundle {current.digest[:16]}",
        found=_describe_change(registry, found, current),
        do=_instruction(log, current),
    )


def _champion_version(registry: Registry) -> str | None:
    try:
        return registry.champion().version
    except NotReadyError:
        return None


def _describe_change(registry: Registry, found: str | None, current: Decision | None) -> str:
    if current is not None and _find_version(registry, current.version, current.digest) is None:
        rest = "other versions exist" if registry.versions() else "its registered model was deleted as well"
        return f"the version was deleted in MLflow; {rest}"
    if found is None:
        return f"the alias {CHAMPION} was removed"
    return f"the alias {CHAMPION} points to version {found}"


def _instruction(log: DecisionLog, current: Decision | None) -> str:
    if current is None:
        return (
            "use the workspace that promoted it, or remove the alias in MLflow's UI: "
            f"Models, the version, Aliases, {CHAMPION}"
        )
    return f"restore it: gtvray rollback --restore --workspace {shlex.quote(str(log.workspace))}"


def _find_version(registry: Registry, version: str | None, digest: str | None) -> ModelVersion | None:
    """Return a version if it exists and is still the bundle that was decided on."""
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
            do="copy the bundle's folder there and run this again",
        )
    bundle = Bundle.load(folder)
    if bundle.digest != digest:
        raise BundleError(
            "the bundle is not the one that was promoted", where=folder, expected=digest, found=bundle.digest
        )
    run_id = str(bundle.info["mlflow_run"])
    registry.require_run(run_id)
    version = registry.register(bundle, run_id)
    registry.restore_golden(version, golden / digest[:16])
    return version


def _plain(evidence: Evidence, judgement: Judgement) -> dict[str, Any]:
    return {**asdict(evidence), **asdict(judgement)}
