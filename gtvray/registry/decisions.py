"""The log of promotion decisions, including refusals, in MLflow, shared by all workspaces and hosts.

Each decision is a run of the experiment `MODEL-decisions`. Its tags hold what later decisions depend on and are written
with the run in one transaction; the record with the evidence is an artifact. Decisions are ordered by the number of the
lease that they were made under.

A change of the champion is recorded before the alias moves, with state `intended`, and `completed` afterwards. A crash
in between leaves an intended decision, which the next process that holds the lease completes or marks as `undone`. A
refusal whose record was not written because of a crash becomes `interrupted`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast, get_args

from gtvray.errors import ResourceError
from gtvray.failpoints import failpoint
from gtvray.io import sha256_of
from gtvray.registry.lease import Holder, Lease, hold_lease
from gtvray.registry.looks import LookLog
from gtvray.tracking import all_runs, artifact_errors, experiment_id, mlflow_faults

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.tracking import MlflowClient

Kind = Literal["promoted", "refused", "rolled_back", "restored", "adopted"]
State = Literal["intended", "completed", "undone", "interrupted"]
RECORD = "decision.json"
_PREFIX = "gtvray.decision."
# MLflow truncates longer values.
_MAX_TEXT = 4000


@dataclass(frozen=True)
class Decision:
    """An entry of the log.

    Attributes:
        kind: promoted, refused, rolled_back, restored after an external change, or adopted from such a change.
        digest: digest of the bundle that was decided on.
        version: its registered version; None for a refused bundle.
        previous: the version that was champion before.
        by: name of the person or account.
        reason: why the gate was overridden, or an external change was restored or adopted; otherwise empty.
        cases: digest of the held-out cases it is based on; empty without evidence.
        evidence: sha256 of its record in MLflow; empty if it has none, which is possible without evidence only.
        number: number of the lease it was made under; decisions are ordered by it.
        at: UTC time, ISO 8601.
        state: whether the change it records has taken place.
        run_id: MLflow run that holds it.
    """

    kind: Kind
    digest: str
    version: str | None
    previous: str | None
    by: str = ""
    reason: str = ""
    cases: str = ""
    evidence: str = ""
    number: int = 0
    at: str = ""
    state: State = "intended"
    run_id: str = ""


class DecisionLog:
    """Decisions about a registered model.

    Args:
        client: client of the MLflow store.
        model: name of the registered model.
        artifacts: artifact folder of an SQLite store; None leaves it to the server.
        by: name of the person or account that decides.
        waiting: called with the holder of the lease that is waited for.
    """

    def __init__(
        self,
        client: MlflowClient,
        model: str,
        artifacts: Path | None,
        by: str,
        waiting: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._client, self._model, self._artifacts = client, model, artifacts
        self.by, self._waiting = by, waiting

    @property
    def experiment(self) -> str:
        """Name of the MLflow experiment that holds the decisions."""
        return f"{self._model}-decisions"

    @property
    def looks(self) -> LookLog:
        """Looks of the gate at held-out scans, in the same experiment."""
        return LookLog(self._client, self.experiment, self._artifacts, self.by)

    def lease(self) -> AbstractContextManager[Lease]:
        """Hold the exclusive right to change the champion; processes on other hosts wait as well."""
        # Even if the lease was deleted in MLflow, the next decision must have a higher number than the last one.
        last = max((decision.number for decision in self.decisions()), default=0)
        return hold_lease(self._client, self._model, Holder.this_process(self.by), self._waiting, above=last)

    def signed(self, decision: Decision, lease: Lease) -> Decision:
        """Return a copy of a decision with author, number and time, for its record; otherwise `add` sets them."""
        at = datetime.now(UTC).isoformat(timespec="seconds")
        return replace(decision, by=self.by, number=lease.number, at=at)

    def add(self, decision: Decision, lease: Lease, record: Path | None = None) -> Decision:
        """Record a decision, and return it with its author, number, time and run.

        Args:
            decision: the decision.
            lease: the lease that it is made under; at most one decision each.
            record: folder with its record, `RECORD` among its files.

        Raises:
            ResourceError: the record of a promotion or refusal cannot be written to MLflow's artifact store; the
                decision stays `intended` until the next holder of the lease settles it.
        """
        made = decision if decision.number else self.signed(decision, lease)
        made = replace(made, evidence=sha256_of(record / RECORD) if record is not None else "")
        experiment = experiment_id(self._client, self.experiment, self._artifacts)
        name = f"{made.number:04d} {made.kind} {made.digest[:12]}"
        run = self._client.create_run(experiment, tags=_tags(made), run_name=name)
        made = replace(made, run_id=str(run.info.run_id))
        failpoint("decision.recorded")
        return made if record is None else self._upload(made, record, run.info.artifact_uri)

    def _upload(self, made: Decision, record: Path, location: str) -> Decision:
        do = "make it reachable and writable, and run this again; the champion is unchanged"
        try:
            with artifact_errors("the record cannot be written to MLflow's artifact store", location, do):
                self._client.log_artifacts(made.run_id, str(record))
        except ResourceError:
            if made.kind in ("promoted", "refused"):
                raise
            # The record of a rollback has no more than the tags; a rollback must not depend on the artifact store.
            self._client.set_tag(made.run_id, f"{_PREFIX}evidence", "")
            return replace(made, evidence="")
        return made

    def settle(self, decision: Decision, state: State) -> Decision:
        """Record whether the change of a decision took place."""
        if self._client.get_run(decision.run_id).info.lifecycle_stage == "deleted":
            # The run was deleted in MLflow's UI, and MLflow does not modify deleted runs; the log keeps its decisions.
            self._client.restore_run(decision.run_id)
        self._client.set_tag(decision.run_id, f"{_PREFIX}state", state)
        self._client.set_terminated(decision.run_id, "FINISHED" if state == "completed" else "FAILED")
        return replace(decision, state=state)

    def decisions(self) -> list[Decision]:
        """Return all decisions, oldest first; a run that was deleted in MLflow's UI still counts.

        Raises:
            InputError: the experiment was deleted; the error gives the command that restores it.
        """
        found = map(_parse, all_runs(self._client, self.experiment))
        return sorted((each for each in found if each is not None), key=lambda decision: decision.number)

    def champions(self) -> list[Decision]:
        """Return the decisions that made the current champion and its predecessors, the current one last.

        A rollback removes the champion it left, so that repeated rollbacks lead further back.
        """
        return champions_of(self.decisions())

    def current(self) -> Decision | None:
        """Return the decision that made the current champion; None before the first promotion."""
        champions = self.champions()
        return champions[-1] if champions else None

    def has_record(self, decision: Decision) -> bool:
        """Return whether the record of a decision is in MLflow; a crash may have prevented its upload.

        Raises:
            ResourceError: MLflow's artifact store cannot be reached.
        """
        location = self._client.get_run(decision.run_id).info.artifact_uri
        do = "make MLflow's artifact store reachable, and run this again; the champion is unchanged"
        with artifact_errors("the record of a decision cannot be reached", location, do):
            return any(entry.path == RECORD for entry in self._client.list_artifacts(decision.run_id))

    def download_record(self, decision: Decision, folder: Path) -> Path:
        """Download the record of a decision into a folder and return its JSON file.

        Raises:
            ResourceError: it cannot be reached, or is not the one that was recorded.
        """
        import mlflow

        try:
            mlflow.artifacts.download_artifacts(
                run_id=decision.run_id, dst_path=str(folder), tracking_uri=self._client.tracking_uri
            )
            found = sha256_of(folder / RECORD)
        except mlflow_faults() as error:
            found = str(error)
        if found != decision.evidence:
            raise ResourceError(
                "the record of this decision cannot be used",
                where=f"decision {decision.number}, MLflow run {decision.run_id}",
                expected=f"{RECORD} with sha256 {decision.evidence}",
                found=found,
                do="restore the files of this run in MLflow's artifact store",
            )
        return folder / RECORD


def champions_of(decisions: Sequence[Decision]) -> list[Decision]:
    """Return the result of `DecisionLog.champions` for decisions that were read before."""
    champions: list[Decision] = []
    for decision in decisions:
        if decision.state != "completed" or decision.kind == "refused":
            continue
        if decision.kind == "rolled_back":
            champions = champions[:-1]
        # The same bundle again: promoted twice, rolled back to, or restored.
        if champions and champions[-1].digest == decision.digest:
            champions.pop()
        champions.append(decision)
    return champions


def _tags(decision: Decision) -> dict[str, str]:
    values = {
        "kind": decision.kind,
        "digest": decision.digest,
        "version": decision.version or "",
        "previous": decision.previous or "",
        "by": decision.by,
        "reason": decision.reason,
        "cases": decision.cases,
        "evidence": decision.evidence,
        "number": str(decision.number),
        "at": decision.at,
        "state": decision.state,
    }
    return {f"{_PREFIX}{name}": value[:_MAX_TEXT] for name, value in values.items()}


def _parse(run: Run) -> Decision | None:
    """Read a decision from a run; None if the run is not one."""
    tags: Mapping[str, str] = run.data.tags
    values = {name.removeprefix(_PREFIX): value for name, value in tags.items() if name.startswith(_PREFIX)}
    kind, state, number = values.get("kind"), values.get("state"), values.get("number", "")
    if kind not in get_args(Kind) or state not in get_args(State) or not number.isdecimal():
        return None
    return Decision(
        kind=cast(Kind, kind),
        digest=values.get("digest", ""),
        version=values.get("version") or None,
        previous=values.get("previous") or None,
        by=values.get("by", ""),
        reason=values.get("reason", ""),
        cases=values.get("cases", ""),
        evidence=values.get("evidence", ""),
        number=int(number),
        at=values.get("at", ""),
        state=cast(State, state),
        run_id=str(run.info.run_id),
    )
