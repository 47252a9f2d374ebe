"""The run record of a sweep: a parent run, a child run a trial, written by the driver alone."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gtvray.io import read_json_lines
from gtvray.tracking.queue import Entry, MetricQueue
from gtvray.tracking.store import experiment_id, find_or_create_run

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

_PARAM_LIMIT = 6000
_TAG_LIMIT = 5000
_BATCH = 100


class RunRecorder:
    """Records one sweep in MLflow.

    Args:
        client: of the tracking store, which answers now; later absences are bridged.
        experiment: name of the experiment.
        sweep: the sweep's own id; the same id goes on in the same parent run.
        spool: the queue's file.
        artifacts: where a new experiment keeps artifacts; None leaves it to the server.
    """

    def __init__(
        self, client: MlflowClient, experiment: str, sweep: str, spool: Path, artifacts: Path | None = None
    ) -> None:
        self._client, self._sweep = client, sweep
        self._folder = spool.parent.resolve()
        self._experiment = experiment_id(client, experiment, artifacts)
        self._runs: dict[str, str] = {}
        self._open: set[str] = set()
        tags = {"gtvray.sweep": sweep, "mlflow.runName": sweep}
        self.run_id = find_or_create_run(client, self._experiment, sweep, tags)
        # A trial that was killed tells its last epoch again, at another time, which to MLflow is another figure.
        earlier = read_json_lines(spool)
        self._logged = {_identity(entry) for entry in earlier if "metrics" in entry}
        # What an earlier process began and did not end; ended with the sweep if nobody goes on with it.
        for entry in earlier:
            if entry["trial"] is not None:
                self._open.add(entry["trial"])
            if "status" in entry:
                self._open.discard(entry["trial"])
        self._spool = MetricQueue(spool, self._deliver)

    def describe(self, params: Mapping[str, Any], tags: Mapping[str, str]) -> None:
        """Params and tags of the parent run."""
        self._spool.put({"trial": None, "params": _texts(params), "tags": dict(tags)})

    def start(self, trial: str, params: Mapping[str, Any], tags: Mapping[str, str]) -> None:
        """A trial's params and tags; its run is made, or found again."""
        self._open.add(trial)
        self._spool.put({"trial": trial, "params": _texts(params), "tags": dict(tags)})

    def log(self, trial: str | None, metrics: Mapping[str, float], step: int, at_ms: int | None = None) -> None:
        """A trial's figures at an epoch; the sweep's own with None for the trial.

        Args:
            trial: which.
            metrics: the figures; those that an earlier process or a killed trial has told of this epoch count.
            step: the epoch.
            at_ms: when they came, now if not given.
        """
        now = int(time.time() * 1000) if at_ms is None else at_ms
        entry = {"trial": trial, "metrics": dict(metrics), "step": step, "at_ms": now}
        if _identity(entry) not in self._logged:
            self._logged.add(_identity(entry))
            self._spool.put(entry)

    def note(self, trial: str, text: str) -> None:
        """What went wrong in a trial, and what was done about it: a tag of its run."""
        self._spool.put({"trial": trial, "params": {}, "tags": {"gtvray.notes": text[:_TAG_LIMIT]}})

    def attach(self, trial: str | None, path: Path, into: str) -> None:
        """Add a file or folder to a run's artifacts, in their folder `into`; it is read when it is delivered.

        Its path is kept relative to the queue's file, so that it is found after the workspace was moved.
        """
        place = os.path.relpath(path.resolve(), self._folder)
        self._spool.put({"trial": trial, "artifact": place, "into": into})

    def finish(self, trial: str, status: str) -> None:
        """End a trial's run: FINISHED, FAILED or KILLED."""
        self._open.discard(trial)
        self._end(trial, status)

    def finish_sweep(self, status: str) -> None:
        """End the parent run, and with it the runs of trials that were under way."""
        for trial in sorted(self._open):
            self.finish(trial, status)
        self._end(None, status)

    def _end(self, trial: str | None, status: str) -> None:
        self._spool.put({"trial": trial, "status": status, "at_ms": int(time.time() * 1000)})

    def trial_run_id(self, trial: str) -> str:
        """The MLflow run of a trial, once everything queued has arrived."""
        return self._run(trial)

    def flush(self, timeout_s: float = 30.0) -> bool:
        """Wait for delivery; False if MLflow is still away."""
        return self._spool.flush(timeout_s)

    def close(self, timeout_s: float = 30.0) -> bool:
        """Flush and stop; False if something stays queued on disk."""
        return self._spool.close(timeout_s)

    def _deliver(self, entries: list[Entry]) -> None:
        from mlflow.entities import Metric, Param, RunTag

        for start in range(0, len(entries), _BATCH):
            pending: dict[str, list[Metric]] = {}
            for entry in entries[start : start + _BATCH]:
                run_id = self._run(entry["trial"])
                if "metrics" in entry:
                    at = (entry["at_ms"], entry["step"])
                    pending.setdefault(run_id, []).extend(Metric(k, v, *at) for k, v in entry["metrics"].items())
                elif "artifact" in entry:
                    self._send(run_id, self._folder / entry["artifact"], entry["into"])
                elif "status" in entry:
                    self._client.log_batch(run_id, metrics=pending.pop(run_id, []))
                    self._client.set_terminated(run_id, entry["status"], entry["at_ms"])
                else:
                    params = list(entry["params"].items())
                    tags = [RunTag(k, v) for k, v in entry["tags"].items()]
                    for first in range(0, max(1, len(params)), _BATCH):
                        batch = [Param(k, v) for k, v in params[first : first + _BATCH]]
                        self._client.log_batch(run_id, params=batch, tags=tags)
            for run_id, metrics in pending.items():
                self._client.log_batch(run_id, metrics=metrics)

    def _send(self, run_id: str, path: Path, into: str) -> None:
        # What has been removed since is not waited for.
        if path.is_dir():
            self._client.log_artifacts(run_id, str(path), into)
        elif path.is_file():
            self._client.log_artifact(run_id, str(path), into)

    def _run(self, trial: str | None) -> str:
        if trial is None:
            return self.run_id
        if trial not in self._runs:
            tags = {"ray.trial_id": trial, "mlflow.parentRunId": self.run_id, "mlflow.runName": f"trial-{trial}"}
            key = f"{self._sweep}/{trial}"
            self._runs[trial] = find_or_create_run(self._client, self._experiment, key, tags)
        return self._runs[trial]


def _identity(entry: Entry) -> tuple[str | None, int, frozenset[str]]:
    """What makes figures the same: whose, which epoch's, and which ones."""
    return entry["trial"], entry["step"], frozenset(entry["metrics"])


def _texts(params: Mapping[str, Any]) -> dict[str, str]:
    return {name: str(value)[:_PARAM_LIMIT] for name, value in params.items()}
