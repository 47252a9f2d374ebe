"""Utilisation of slots by many short trials, with gtvray's search and trial record.

Trials sleep instead of training, without torch, so that many slots fit on a small machine. The growth of the driver's
memory per trial is measured as well.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ray import cloudpickle, tune
from ray.tune import CheckpointConfig, PlacementGroupFactory

from gtvray.runtime import connect
from gtvray.tracking import TrialRecord
from gtvray.tracking.trials import COMPLETED, Trial
from gtvray.tuning.search import SweepSearch
from gtvray.tuning.searchers.base import METRIC, Proposal
from gtvray.tuning.sweep import _pending_trials

# Workers do not have this folder on their path.
cloudpickle.register_pickle_by_value(sys.modules[__name__])
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class Waiting(tune.Trainable):  # type: ignore[misc]  # Ray ships no types
    """A trial with one step that sleeps."""

    def setup(self, config: dict[str, Any]) -> None:
        """Store the duration of the step."""
        self._seconds = config["seconds"]

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Reuse the actor for another trial."""
        self._seconds = new_config["seconds"]
        return True

    def step(self) -> dict[str, Any]:
        """Sleep."""
        time.sleep(self._seconds)
        return {METRIC: 0.5, "epoch": 1, "done": True}


class Numbered:
    """A searcher whose proposals differ only in their number."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def propose(self, trials: Sequence[Trial]) -> Proposal | None:
        """Return the next point."""
        return Proposal({"seconds": self._seconds, "number": len(trials)}, "random")


class Recording(tune.Callback):  # type: ignore[misc]
    """Records the trials as a sweep does."""

    def __init__(self, record: TrialRecord) -> None:
        self._record = record

    def on_trial_start(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        """Record the start."""
        self._record.start(trial.trial_id)

    def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: dict[str, Any], **info: Any) -> None:
        """Record the epoch."""
        self._record.epoch(trial.trial_id, 1, {METRIC: result[METRIC]})

    def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        """Record the end."""
        self._record.end(trial.trial_id, COMPLETED)


def measure_slots(trials: int, seconds: float, slots: int, address: str | None = None) -> dict[str, Any]:
    """Run trials that sleep, and return the utilisation of the slots.

    Args:
        trials: number of trials.
        seconds: time of each.
        slots: number of trials that run in parallel.
        address: running cluster; by default one is started.
    """
    with tempfile.TemporaryDirectory() as folder, connect(address, cpus=None if address else slots):
        record = TrialRecord(Path(folder))
        search = SweepSearch(Numbered(seconds), record, unfinished=[], trials=trials, concurrent=slots, failures=0)
        before = _resident_bytes()
        began = time.perf_counter()
        with _pending_trials(slots), contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tune.run(
                tune.with_resources(Waiting, PlacementGroupFactory([{"CPU": 1}])),
                name="tune",
                storage_path=folder,
                search_alg=search,
                callbacks=[Recording(record)],
                checkpoint_config=CheckpointConfig(),
                reuse_actors=True,
                verbose=0,
            )
        wall_s = time.perf_counter() - began
    return {
        "trials": trials,
        "seconds": seconds,
        "slots": slots,
        "wall_s": round(wall_s, 1),
        "completed": sum(trial.state == COMPLETED for trial in record.trials.values()),
        "utilisation": round(trials * seconds / (slots * wall_s), 3),
        "driver_kb_per_trial": round((_resident_bytes() - before) / trials / 1000, 1),
    }


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE_BYTES
