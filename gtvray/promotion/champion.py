"""Checks of the champion against the decision log, and recovery after a crash or an external change."""

from __future__ import annotations

import shlex
from pathlib import Path

from gtvray.errors import BundleError, InputError, NotFoundError, NotReadyError, ResourceError
from gtvray.models import Bundle
from gtvray.registry import CHAMPION, Decision, DecisionLog, ModelVersion, Registry, State, champions_of


def require_champion(registry: Registry, log: DecisionLog) -> ModelVersion | None:
    """Return the champion, or None; reject a champion that was not set by a decision, since it has no evidence.

    Call it also before held-out cases are scored, since every scoring (a "look" in the ledger) makes later tests
    stricter.

    Raises:
        InputError: the champion was changed outside the gate; the error says how to restore or adopt it.
    """
    found, decisions = find_champion(registry), log.decisions()
    current = next(reversed(champions_of(decisions)), None)
    decided = {current.digest if current is not None else ""}
    # Set by a process that crashed before completing its decision; the next holder of the lease completes it.
    decided |= {decision.digest for decision in decisions if decision.state == "intended"}
    if (found.digest if found is not None else "") in decided:
        return found
    raise InputError(
        "the champion was changed outside the gate",
        where=registry.name,
        expected="no champion" if current is None else f"version {current.version}, bundle {current.digest[:16]}",
        found=_describe_change(registry, found, current),
        do=_instruction(registry, found, current),
    )


def settle_unfinished(registry: Registry, log: DecisionLog) -> list[Decision]:
    """Settle the decisions that a crash left intended: mark them as completed, undone or interrupted.

    Call it under the lease, before any other change.

    Returns:
        the settled decisions.
    """
    champion = find_champion(registry)
    settled = []
    for decision in log.decisions():
        if decision.state != "intended":
            continue
        state: State
        if decision.kind == "refused":
            # A refusal changes nothing but the log, so it is complete with its record. If the artifact store does not
            # answer, the next process settles it.
            try:
                state = "completed" if log.has_record(decision) else "interrupted"
            except ResourceError:
                continue
        else:
            state = "completed" if champion is not None and champion.digest == decision.digest else "undone"
        settled.append(log.settle(decision, state))
    return settled


def find_champion(registry: Registry) -> ModelVersion | None:
    """Return the version that the alias points to; None if there is no alias."""
    try:
        return registry.champion()
    except NotReadyError:
        return None


def register_again(registry: Registry, digest: str, folder: Path, golden: Path) -> ModelVersion:
    """Register a bundle of the workspace whose version was deleted in MLflow.

    Args:
        registry: the registry.
        digest: digest of the bundle.
        folder: folder of the bundle in the workspace.
        golden: the workspace's folder of golden cases, by digest.

    Raises:
        NotFoundError: the bundle is not in the workspace, or its training run does not exist.
        InputError: its training run was deleted.
        BundleError: the folder holds another bundle.
    """
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
            "the bundle is not the one that was promoted",
            where=folder,
            expected=digest,
            found=bundle.digest,
            do="replace this folder by the promoted bundle and run this again",
        )
    run_id = str(bundle.info["mlflow_run"])
    registry.require_run(run_id)
    version = registry.register(bundle, run_id)
    registry.restore_golden(version, golden / digest[:16])
    return version


def _describe_change(registry: Registry, found: ModelVersion | None, current: Decision | None) -> str:
    if current is not None and registry.find(current.digest) is None:
        rest = "other versions exist" if registry.versions() else "its registered model was deleted as well"
        return f"the version was deleted in MLflow; {rest}"
    if found is None:
        return f"the alias {CHAMPION} was removed"
    return f"the alias {CHAMPION} points to version {found.version}"


def _instruction(registry: Registry, found: ModelVersion | None, current: Decision | None) -> str:
    settings = f"--workspace {shlex.quote(str(registry.workspace))}"
    adopt = "" if found is None else f"accept it: gtvray models adopt {found.version} --reason TEXT {settings}; or "
    if current is None:
        return f"{adopt}remove the alias in MLflow's UI: Models, the version, Aliases, {CHAMPION}"
    return f"{adopt}restore it: gtvray rollback --restore {settings}"
