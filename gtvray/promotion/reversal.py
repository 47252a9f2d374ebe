"""Rollback to an earlier champion, and repair or adoption of a champion that was changed outside the gate."""

from __future__ import annotations

from pathlib import Path

from gtvray.errors import InputError, NotFoundError, NotReadyError
from gtvray.io import atomic_dir
from gtvray.promotion.champion import find_champion, register_again, require_champion, settle_unfinished
from gtvray.promotion.record import write_change
from gtvray.promotion.service import change_champion
from gtvray.registry import OVERRIDE_TAG, Decision, DecisionLog, Lease, ModelVersion, Registry


def rollback(registry: Registry, log: DecisionLog, records: Path) -> ModelVersion:
    """Make the previous champion the champion again; repeated rollbacks go further back.

    Args:
        registry: the registry.
        log: log of decisions.
        records: folder for the record of the decision, which also goes to MLflow.

    Raises:
        NotReadyError: there is no previous champion.
        NotFoundError: its version was deleted.
        InputError: the champion was changed outside the gate.
        BundleError: its bundle is damaged.
    """
    with log.lease() as lease:
        settle_unfinished(registry, log)
        champion = require_champion(registry, log)
        champions = log.champions()
        if champion is None or len(champions) < 2:
            raise NotReadyError(
                "there is no previous champion", do="`gtvray models list` shows the registered versions"
            )
        previous = champions[-2]
        version = registry.find(previous.digest)
        if version is None:
            raise NotFoundError(
                "the previous champion's version was deleted in MLflow",
                expected=f"version {previous.version}, bundle {previous.digest}",
                found=", ".join(known.version for known in registry.versions()) or "no versions",
                do="promote another bundle; the champion is unchanged",
            )
        decision = Decision("rolled_back", version.digest, version.version, champion.version)
        _change(registry, log, lease, version, decision=decision, records=records)
    return version


def restore(registry: Registry, log: DecisionLog, records: Path, *, bundles: Path, golden: Path) -> ModelVersion:
    """Restore the champion of the last decision after a change outside the gate or a crash.

    A deleted version is registered again, under a new number, from the bundle in the workspace.

    Args:
        registry: the registry that was changed.
        log: log of decisions.
        records: folder for the record of the decision, which also goes to MLflow.
        bundles: the workspace's folder of fetched bundles, by digest.
        golden: the workspace's folder of golden cases, by digest.

    Raises:
        NotReadyError: the log has no promotion.
        NotFoundError: the version was deleted and its bundle is not in the workspace, or its run does not exist.
        InputError: its run was deleted.
        BundleError: the bundle is not the one that was decided on.
    """
    with log.lease() as lease:
        settle_unfinished(registry, log)
        current = log.current()
        if current is None:
            raise NotReadyError(
                "no champion to restore: nothing was promoted",
                where=registry.name,
                do="promote a model with `gtvray promote`",
            )
        version = registry.find(current.digest)
        if version is None:
            version = register_again(registry, current.digest, bundles / current.digest[:16], golden)
        champion = find_champion(registry)
        if champion is not None and champion.version == version.version:
            return version
        reason = f"restored version {current.version} after a change outside the gate"
        previous = champion.version if champion is not None else None
        decision = Decision("restored", current.digest, version.version, previous, reason=reason)
        _change(registry, log, lease, version, decision=decision, records=records)
    return version


def adopt(registry: Registry, log: DecisionLog, records: Path, *, version: str, reason: str) -> ModelVersion:
    """Accept a champion that was set in MLflow, on the authority of a named person instead of the gate.

    Name and reason become a tag of the version, which endpoints show with the model.

    Args:
        registry: the registry.
        log: log of decisions, whose `by` names the person.
        records: folder for the record of the decision, which also goes to MLflow.
        version: the version that the alias points to, given for confirmation.
        reason: why it may be served.

    Raises:
        NotReadyError: there is no champion.
        InputError: the alias points to another version, or a decision made this version champion.
        BundleError: the bundle is damaged, or was not registered by gtvray.
    """
    with log.lease() as lease:
        settle_unfinished(registry, log)
        champion = registry.champion()
        if champion.version != version:
            raise InputError(
                "not the champion",
                expected=f"version {champion.version}",
                found=f"version {version}",
                do="pass the version that the alias champion points to",
            )
        current = log.current()
        if current is not None and current.digest == champion.digest:
            raise InputError("a decision made this version champion already", found=f"decision {current.number}")
        previous = current.version if current is not None else None
        decision = Decision("adopted", champion.digest, champion.version, previous, reason=reason)
        override = f"adopted by {log.by}: {reason}"
        _change(registry, log, lease, champion, decision=decision, records=records, override=override)
    return registry.get(champion.version)


def _change(
    registry: Registry,
    log: DecisionLog,
    lease: Lease,
    version: ModelVersion,
    *,
    decision: Decision,
    records: Path,
    override: str | None = None,
) -> None:
    """Write the record of a decision without evidence, and change the champion; `override` marks the version."""
    # A damaged bundle is refused before anything is written.
    registry.fetch(version)
    if override is not None:
        # Set before the decision, so that no adopted version is ever served as one that passed the gate.
        registry.describe(version, {OVERRIDE_TAG: override})
    signed = log.signed(decision, lease)
    record = records / f"{lease.number:04d}-{decision.kind}"
    with atomic_dir(record) as temporary:
        write_change(temporary, signed)
    change_champion(registry, log, lease, version, decision=signed, record=record)
