"""Trials given to Ray Tune: recorded before they exist, unfinished ones first, and no more than may run in parallel."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray import tune
from ray.train._internal.storage import StorageContext
from ray.tune import CheckpointConfig
from ray.tune.experiment import Trial as TuneTrial

from gtvray import failpoints
from gtvray.tracking import Trial, TrialRecord, read_trials
from gtvray.tracking.trials import COMPLETED, PLANNED
from gtvray.tuning.search import SweepSearch
from gtvray.tuning.searchers.base import NoSearcher, Proposal, WaitForTrial
from gtvray.tuning.sweep import _pending_trials


class Counting:
    """Proposes the number of trials, a given number of times."""

    def __init__(self, points: int = 100) -> None:
        self.points = points
        self.heard: list[int] = []

    def propose(self, trials: Sequence[Trial]) -> Proposal | None:
        self.heard.append(len(trials))
        return Proposal({"training.seed": len(trials)}, "random") if len(trials) < self.points else None


@pytest.fixture
def record(tmp_path: Path) -> TrialRecord:
    return TrialRecord(tmp_path)


def search(record: TrialRecord, searcher: Any = None, **changes: Any) -> SweepSearch:
    settings: dict[str, Any] = {"unfinished": [], "trials": 3, "concurrent": 2, "failures": 1}
    found = SweepSearch(searcher or Counting(), record, **{**settings, **changes})
    spec = {"run": "stub", "checkpoint_config": CheckpointConfig(), "storage": None}
    # A trainable that Tune does not know: nothing is run here.
    found._create = lambda name: _stub(found, name)  # type: ignore[method-assign]
    found.add_configurations([SimpleNamespace(spec=spec)])  # type: ignore[list-item]
    return found


def _stub(search: SweepSearch, name: str) -> TuneTrial:
    trial = TuneTrial("stub", stub=True, trial_id=name, config=dict(search._record.trials[name].settings))
    search._created.append(trial)
    return trial


def test_a_trial_is_recorded_before_tune_has_it(record: TrialRecord, tmp_path: Path) -> None:
    trial = search(record).next_trial()
    assert trial is not None
    assert (trial.trial_id, trial.config) == ("t0", {"training.seed": 0})
    assert read_trials(tmp_path) == [Trial("t0", {"training.seed": 0}, state=PLANNED, origin="random")]


def test_a_kill_right_after_the_plan_leaves_a_trial_that_is_created_again(record: TrialRecord, tmp_path: Path) -> None:
    failpoints.arm("tuning.after_plan=raise")
    with pytest.raises(RuntimeError, match="failpoint"):
        search(record).next_trial()
    (planned,) = read_trials(tmp_path)
    again = search(TrialRecord(tmp_path), unfinished=[planned.trial_id])
    assert [trial.trial_id for trial in (again.next_trial(), again.next_trial()) if trial] == ["t0", "t1"]
    assert [trial.trial_id for trial in read_trials(tmp_path)] == ["t0", "t1"]


def test_no_more_trials_than_may_run_at_once(record: TrialRecord) -> None:
    found = search(record)
    first, second = found.next_trial(), found.next_trial()
    assert found.next_trial() is None
    assert not found.is_finished()
    assert first is not None
    assert second is not None
    first.set_status(TuneTrial.TERMINATED)
    third = found.next_trial()
    assert third is not None
    second.set_status(TuneTrial.TERMINATED)
    assert found.next_trial() is None
    assert found.is_finished(), "three trials were asked for"


def test_paused_trials_that_are_to_continue_come_before_new_ones(record: TrialRecord) -> None:
    waiting = [1]
    found = search(record, concurrent=1, reserved=lambda: waiting[0])
    assert found.next_trial() is None
    waiting[0] = 0
    trial = found.next_trial()
    assert trial is not None
    trial.set_status(TuneTrial.PAUSED)
    assert found.next_trial() is not None, "a paused trial takes no slot"


def test_unfinished_trials_come_first_with_their_settings_and_count(record: TrialRecord) -> None:
    for number in range(2):
        record.plan(f"t{number}", {"training.seed": 10 + number}, "given")
    record.end("t0", COMPLETED)
    searcher = Counting()
    found = search(record, searcher, unfinished=["t1"], trials=3)
    trials = [found.next_trial(), found.next_trial()]
    assert [(trial.trial_id, trial.config) for trial in trials if trial] == [
        ("t1", {"training.seed": 11}),
        ("t2", {"training.seed": 2}),
    ]
    assert searcher.heard == [2], "the searcher knows the earlier ones"
    assert found.is_finished()


def test_the_end_of_the_space_and_a_stopped_sweep_end_the_search(record: TrialRecord) -> None:
    found = search(record, Counting(points=1), trials=5)
    assert found.next_trial() is not None
    assert not found.is_finished()
    assert found.next_trial() is None
    assert found.is_finished()
    stopped = search(record, stopping=lambda: True)
    assert stopped.is_finished()
    assert stopped.next_trial() is None


def test_nothing_is_proposed_where_trials_only_continue(record: TrialRecord) -> None:
    record.plan("t0", {}, "default")
    found = search(record, NoSearcher(), unfinished=["t0"], trials=0)
    assert not found.is_finished()
    assert found.next_trial() is not None
    assert found.is_finished()


def test_tune_gets_the_number_of_trials_that_start_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "TUNE_MAX_PENDING_TRIALS_PG"
    monkeypatch.delenv(name, raising=False)
    with _pending_trials(7):
        assert os.environ[name] == "7"
    assert name not in os.environ
    monkeypatch.setenv(name, "3")
    with _pending_trials(7):
        assert os.environ[name] == "7"
    assert os.environ[name] == "3"


def test_a_searcher_that_waits_for_a_trial_is_asked_again_later(record: TrialRecord, tmp_path: Path) -> None:
    class Waiting(Counting):
        ready = False

        def propose(self, trials: Sequence[Trial]) -> Proposal | None:
            if not self.ready:
                raise WaitForTrial
            return super().propose(trials)

    searcher = Waiting()
    found = search(record, searcher)
    assert found.next_trial() is None
    assert not found.is_finished(), "the sweep goes on"
    assert read_trials(tmp_path) == [], "nothing is recorded"
    searcher.ready = True
    assert found.next_trial() is not None


def test_trials_of_tune_have_the_recorded_id_and_settings(record: TrialRecord, tmp_path: Path) -> None:
    """Tune makes up ids and merges settings by itself; a trial under another id would not find its checkpoints."""
    tune.register_trainable("stub", lambda config: None)
    found = SweepSearch(Counting(), record, unfinished=[], trials=3, concurrent=1, failures=1)
    storage = StorageContext(storage_path=str(tmp_path), experiment_dir_name="tune")
    spec = {"run": "stub", "checkpoint_config": CheckpointConfig(), "storage": storage}
    found.add_configurations([SimpleNamespace(spec=spec)])  # type: ignore[list-item]
    trial = found.next_trial()
    assert trial is not None
    assert (trial.trial_id, trial.config, trial.max_failures) == ("t0", {"training.seed": 0}, 1)
    trial.config["training.seed"] = 7
    assert record.trials["t0"].settings == {"training.seed": 0}, "a scheduler changes its own copy"
    assert found.next_trial() is None, "it counts as running"
    assert found.total_samples == 3
