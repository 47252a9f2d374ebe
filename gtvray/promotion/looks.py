"""The number of models scored on a project's held-out cases: by this workspace, and for the gate by all on its MLflow.

A model counts once, however often it was scored: by the digest of its bundle.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from gtvray.data import Project
from gtvray.datasets import Ledger
from gtvray.promotion.gate import level_at
from gtvray.registry import DecisionLog, Look


@dataclass(frozen=True)
class LookCount:
    """Number of models scored on any of the held-out cases.

    Attributes:
        number: this model included.
        undecided: how many of the others were scored by the gate without a decision, since the process ended early.
        run_id: MLflow run of the look; empty if none was recorded.
    """

    number: int
    undecided: int = 0
    run_id: str = ""


class Looks:
    """The looks at the held-out cases of a project.

    Args:
        ledger: ledger of this workspace.
        log: decisions and looks of all workspaces on the same MLflow.
        project: the data.
        rate: probability of any false promotion, `promotion.false_promotion_rate`.
    """

    def __init__(self, ledger: Ledger, log: DecisionLog, project: Project, rate: float) -> None:
        self._ledger, self._log, self._project, self._rate = ledger, log, project, rate
        self._scans = frozenset(project.scans[case_id] for case_id in project.split.held_out)

    def count(self, digest: str) -> LookCount:
        """Count the models that were scored before, and a bundle in addition, without recording it."""
        decided, undecided = self._shared(digest)
        number = self._ledger.count(*self._entry(digest), known=decided | undecided)
        return LookCount(number, len(undecided))

    def begin(self, digest: str) -> LookCount:
        """Record a look of a bundle in MLflow and in the ledger; call it before anything is scored."""
        stated = self.count(digest).number
        # MLflow first: without it there is no decision, so an outage costs no look.
        run_id = self._log.looks.begin(Look(digest, self._scans, stated, level_at(stated, self._rate)))
        # Counted again, because another workspace may have recorded a look in the meantime.
        decided, undecided = self._shared(digest)
        number = self._ledger.record("promotion", *self._entry(digest), known=decided | undecided)
        return LookCount(number, len(undecided), run_id)

    def _shared(self, digest: str) -> tuple[set[str], set[str]]:
        """Return the digests of the other bundles that the gate has scored, with and without a decision."""
        cases = cases_digest(self._project)
        looks = [look for look in self._log.looks.looks() if look.scans & self._scans]
        # Earlier versions recorded decisions only.
        decided = {decision.digest for decision in self._log.decisions() if decision.cases == cases}
        decided |= {look.digest for look in looks if look.state == "completed"}
        return decided - {digest}, {look.digest for look in looks} - decided - {digest}

    def _entry(self, digest: str) -> tuple[str, tuple[str, ...], str, list[Path]]:
        project = self._project
        return digest, project.split.held_out, project.fingerprint.digest, [case.image for case in project.held_out]


def cases_digest(project: Project) -> str:
    """Digest of the held-out scans by their content: the same for the same files in any folder."""
    scans = sorted(project.scans[case_id] for case_id in project.split.held_out)
    return hashlib.sha256("\n".join(scans).encode()).hexdigest()
