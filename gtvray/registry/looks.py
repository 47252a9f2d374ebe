"""Looks of the gate in MLflow: which bundles were scored on which scans, by any workspace or host, decided or not.

A look is a run of the experiment of the decisions. It is recorded before anything is scored, in one transaction, so
that the look of a process that is killed afterwards counts. Its decision marks it as `completed`; one that stays
`begun` has none. No lease is needed: of two bundles that are scored at the same time, at least one counts the other.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast, get_args

from gtvray.tracking import all_runs, experiment_id, mlflow_faults

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.tracking import MlflowClient

LookState = Literal["begun", "completed"]
_PREFIX = "gtvray.look."
# 60 digests of 64 characters each; MLflow truncates values of more than 5000.
_SCANS_PER_TAG = 60


@dataclass(frozen=True)
class Look:
    """A bundle that was scored on held-out scans, or was about to be.

    Attributes:
        digest: digest of the bundle.
        scans: digests of the scans.
        number: number of bundles scored on any of these scans, this one included, as stated before scoring.
        level: two-sided confidence level of the primary test for that number.
        by: name of the person or account.
        at: UTC time, ISO 8601.
        state: whether there is a decision.
        run_id: MLflow run that holds it.
    """

    digest: str
    scans: frozenset[str]
    number: int
    level: float
    by: str = ""
    at: str = ""
    state: LookState = "begun"
    run_id: str = ""


class LookLog:
    """The looks at held-out scans by bundles that were to become versions of a registered model.

    Args:
        client: client of the MLflow store.
        experiment: name of the experiment that holds the decisions.
        artifacts: artifact folder of an SQLite store; None leaves it to the server.
        by: name of the person or account.
    """

    def __init__(self, client: MlflowClient, experiment: str, artifacts: Path | None, by: str) -> None:
        self._client, self._experiment, self._artifacts, self._by = client, experiment, artifacts, by

    def begin(self, look: Look) -> str:
        """Record a look before anything is scored; return the id of its MLflow run."""
        experiment = experiment_id(self._client, self._experiment, self._artifacts)
        values = {
            "digest": look.digest,
            "number": str(look.number),
            "level": repr(look.level),
            "by": self._by,
            "at": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "state": "begun",
            **_chunks(sorted(look.scans)),
        }
        tags = {f"{_PREFIX}{name}": value for name, value in values.items()}
        return str(self._client.create_run(experiment, tags=tags, run_name=f"look {look.digest[:12]}").info.run_id)

    def complete(self, run_id: str) -> None:
        """Mark a look as decided. Without effect if MLflow cannot do so, since the look counts in either state."""
        if not run_id:
            return
        with contextlib.suppress(*mlflow_faults()):
            self._client.set_tag(run_id, f"{_PREFIX}state", "completed")
            self._client.set_terminated(run_id, "FINISHED")

    def looks(self) -> list[Look]:
        """Return all looks; one that was deleted in MLflow's UI still counts.

        Raises:
            InputError: the experiment was deleted; the error gives the command that restores it.
        """
        found = (_parse(run) for run in all_runs(self._client, self._experiment))
        return sorted((look for look in found if look is not None), key=lambda look: look.at)


def _chunks(scans: Sequence[str]) -> dict[str, str]:
    starts = range(0, len(scans), _SCANS_PER_TAG)
    return {f"scans.{start // _SCANS_PER_TAG}": " ".join(scans[start : start + _SCANS_PER_TAG]) for start in starts}


def _parse(run: Run) -> Look | None:
    """Read a look from a run; None if the run is not one."""
    tags: Mapping[str, str] = run.data.tags
    values = {name.removeprefix(_PREFIX): value for name, value in tags.items() if name.startswith(_PREFIX)}
    if not values.get("digest") or values.get("state") not in get_args(LookState):
        return None
    chunks = [value for name, value in values.items() if name.startswith("scans.")]
    return Look(
        digest=values["digest"],
        scans=frozenset(" ".join(chunks).split()),
        number=int(values.get("number", 0)),
        level=float(values.get("level", 0)),
        by=values.get("by", ""),
        at=values.get("at", ""),
        state=cast(LookState, values["state"]),
        run_id=str(run.info.run_id),
    )
