"""The MLflow record of a sweep or training: a parent run with a child run per trial or fold, written by the driver."""

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
    """Records one sweep or training in MLflow.

    The server must be reachable when this is created; entries of later outages are buffered on disk.

    Args:
        client: client of the tracking store.
        experiment: name of the experiment.
        name: name of the sweep or training; the same name continues the same parent run.
        queue_file: file of the metric queue.
        artifacts: artifact folder of a new experiment; None leaves it to the server.
    """

    def __init__(
        self, client: MlflowClient, experiment: str, name: str, queue_file: Path, artifacts: Path | None = None
    ) -> None:
        self._client, self._name = client, name
        self._folder = queue_file.parent.resolve()
        self._experiment = experiment_id(client, experiment, artifacts)
        self._runs: dict[str, str] = {}
        self._open: set[str] = set()
        tags = {"gtvray.sweep": name, "mlflow.runName": name}
        self.run_id = find_or_create_run(client, self._experiment, name, tags)
        # A trial that was killed reports its last epoch again with a new time stamp, a second row to MLflow.
        earlier = read_json_lines(queue_file)
        self._logged = {_identity(entry) for entry in earlier if "metrics" in entry}
        # Trials that an earlier process left running end with the parent run, unless they are resumed.
        for entry in earlier:
            if entry["trial"] is not None:
                self._open.add(entry["trial"])
            if "status" in entry:
                self._open.discard(entry["trial"])
        self._queue = MetricQueue(queue_file, self._deliver)

    def describe(self, params: Mapping[str, Any], tags: Mapping[str, str]) -> None:
        """Set params and tags of the parent run."""
        self._queue.put({"trial": None, "params": _texts(params), "tags": dict(tags)})

    def start(self, trial: str, params: Mapping[str, Any], tags: Mapping[str, str]) -> None:
        """Set params and tags of a trial; its run is created, or continued if it exists."""
        self._open.add(trial)
        self._queue.put({"trial": trial, "params": _texts(params), "tags": dict(tags)})

    def log(self, trial: str | None, metrics: Mapping[str, float], step: int, at_ms: int | None = None) -> None:
        """Log metrics of an epoch; the same metrics of an epoch are logged once, and the first values are kept.

        Args:
            trial: id of the trial; None for the parent run.
            metrics: name -> value.
            step: the epoch.
            at_ms: time stamp, Unix time in milliseconds; now by default.
        """
        now = int(time.time() * 1000) if at_ms is None else at_ms
        entry = {"trial": trial, "metrics": dict(metrics), "step": step, "at_ms": now}
        if _identity(entry) not in self._logged:
            self._logged.add(_identity(entry))
            self._queue.put(entry)

    def note(self, trial: str, text: str) -> None:
        """Record an incident in a trial and how it was handled, as a tag of its run."""
        self._queue.put({"trial": trial, "params": {}, "tags": {"gtvray.notes": text[:_TAG_LIMIT]}})

    def attach(self, trial: str | None, path: Path, into: str) -> None:
        """Add a file or folder to a run's artifacts under `into`; it is read when the entry is delivered.

        The path is stored relative to the queue's folder, so it stays valid if the workspace is moved.
        """
        relative = os.path.relpath(path.resolve(), self._folder)
        self._queue.put({"trial": trial, "artifact": relative, "into": into})

    def finish(self, trial: str, status: str) -> None:
        """End a trial's run as FINISHED, FAILED or KILLED."""
        self._open.discard(trial)
        self._end(trial, status)

    def finish_run(self, status: str) -> None:
        """End the parent run and the runs of trials that are still open."""
        for trial in sorted(self._open):
            self.finish(trial, status)
        self._end(None, status)

    def _end(self, trial: str | None, status: str) -> None:
        self._queue.put({"trial": trial, "status": status, "at_ms": int(time.time() * 1000)})

    def trial_run_id(self, trial: str) -> str:
        """Return the id of a trial's MLflow run, creating the run if its entries are not delivered yet."""
        return self._run(trial)

    def flush(self, timeout_s: float = 30.0) -> bool:
        """Wait for delivery; return False if MLflow is still unreachable."""
        return self._queue.flush(timeout_s)

    def close(self, timeout_s: float = 30.0) -> bool:
        """Flush and stop; return False if entries stay queued on disk."""
        return self._queue.close(timeout_s)

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
                    self._upload(run_id, self._folder / entry["artifact"], entry["into"])
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

    def _upload(self, run_id: str, path: Path, into: str) -> None:
        # A file that was removed after it was queued must not block the entries behind it.
        if path.is_dir():
            self._client.log_artifacts(run_id, str(path), into)
        elif path.is_file():
            self._client.log_artifact(run_id, str(path), into)

    def _run(self, trial: str | None) -> str:
        if trial is None:
            return self.run_id
        if trial not in self._runs:
            tags = {"ray.trial_id": trial, "mlflow.parentRunId": self.run_id, "mlflow.runName": f"trial-{trial}"}
            key = f"{self._name}/{trial}"
            self._runs[trial] = find_or_create_run(self._client, self._experiment, key, tags)
        return self._runs[trial]


def _identity(entry: Entry) -> tuple[str | None, int, frozenset[str]]:
    """Return what identifies logged metrics: trial, epoch and metric names."""
    return entry["trial"], entry["step"], frozenset(entry["metrics"])


def _texts(params: Mapping[str, Any]) -> dict[str, str]:
    return {name: str(value)[:_PARAM_LIMIT] for name, value in params.items()}
