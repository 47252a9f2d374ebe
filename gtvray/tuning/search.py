"""Ray Tune's search algorithm: creates trials from the proposals of a searcher; each is recorded first.

Ray Tune's own searcher interface assigns random ids and restores trials from a snapshot that may be seconds old. Here
the record of the sweep is the only source: recorded trials that have not ended are created again under the same id, and
their trainings continue from their checkpoints.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ray.tune.experiment import Experiment, Trial
from ray.tune.search import SearchAlgorithm

from gtvray.failpoints import failpoint
from gtvray.tracking import TrialRecord
from gtvray.tuning.searchers.base import METRIC, Searcher, WaitForTrial


class SweepSearch(SearchAlgorithm):  # type: ignore[misc]  # Ray ships no types
    """Creates the trials of a sweep.

    Args:
        searcher: proposes points.
        record: record of the sweep; its unfinished trials are created first.
        unfinished: ids of those trials.
        trials: number of trials of the sweep.
        concurrent: maximum number of trials that are pending or running.
        failures: how often a trial is restarted after a failure.
        stopping: returns whether to stop creating trials.
        reserved: returns the number of paused trials that continue before new ones start.

    Attributes:
        concurrent: as given.
    """

    def __init__(
        self,
        searcher: Searcher,
        record: TrialRecord,
        *,
        unfinished: list[str],
        trials: int,
        concurrent: int,
        failures: int,
        stopping: Callable[[], bool] = lambda: False,
        reserved: Callable[[], int] = lambda: 0,
    ) -> None:
        self._searcher, self._record = searcher, record
        self._queue, self._trials = list(unfinished), trials
        self.concurrent, self._failures = concurrent, failures
        self._stopping, self._reserved = stopping, reserved
        self._metric = METRIC
        self._spec: dict[str, Any] = {}
        self._created: list[Trial] = []

    @property
    def total_samples(self) -> int:
        """Number of trials of the sweep."""
        return self._trials

    def add_configurations(self, experiments: list[Experiment]) -> None:
        """Store the specification that all trials share."""
        self._spec = experiments[0].spec

    def next_trial(self) -> Trial | None:
        """Return a new trial; None if there is none, or if no more may run now."""
        active = sum(trial.status in (Trial.PENDING, Trial.RUNNING) for trial in self._created)
        if self.is_finished() or active + self._reserved() >= self.concurrent:
            return None
        if self._queue:
            return self._create(self._queue.pop(0))
        try:
            proposal = self._searcher.propose(list(self._record.trials.values()))
        except WaitForTrial:
            return None
        if proposal is None:
            self.set_finished()
            return None
        trial_id = f"t{len(self._record.trials)}"
        self._record.plan(trial_id, proposal.point, proposal.origin)
        failpoint("tuning.after_plan")
        return self._create(trial_id)

    def is_finished(self) -> bool:
        """Return whether no further trial will be created."""
        if self._finished or self._stopping():
            return True
        return not self._queue and len(self._record.trials) >= self._trials

    def save_to_dir(self, dirpath: str, session_str: str) -> None:
        """Do nothing: the record of the sweep holds all state."""

    def _create(self, trial_id: str) -> Trial:
        trial = Trial(
            self._spec["run"],
            config=dict(self._record.trials[trial_id].settings),
            trial_id=trial_id,
            experiment_tag=trial_id,
            checkpoint_config=self._spec["checkpoint_config"],
            max_failures=self._failures,
            storage=self._spec["storage"],
        )
        self._created.append(trial)
        return trial
