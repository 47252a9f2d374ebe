"""The MLflow record of a sweep or training: a parent run with a child run per trial or fold, written by the driver."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gtvray.errors import InputError, NotFoundError
from gtvray.io import read_json_lines
from gtvray.tracking.faults import is_permanent, reason_of
from gtvray.tracking.lookup import TRIAL_TAG, find_run, require_experiment, require_run_kept, trials_of
from gtvray.tracking.queue import Entry, MetricQueue
from gtvray.tracking.rejected import Rejection, read_rejections
from gtvray.tracking.store import experiment_id, find_or_create_run

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

_PARAM_LIMIT = 6000
_TAG_LIMIT = 5000
_BATCH = 100
# Parts of an entry that MLflow accepts or refuses one by one.
_PARTS = ("params", "tags", "metrics")


class RunRecorder:
    """Records one sweep or training in MLflow.

    The server must be reachable when the recorder is created; entries of later outages are buffered on disk. Entries
    that MLflow refuses permanently, such as those of a deleted run, are set aside (`rejections`). If there are any, or
    if MLflow lacks a run that was recorded before, a new recorder for the same queue file sends all entries again.

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
        self._file = queue_file
        self._folder = queue_file.parent.resolve()
        self._experiment_name = experiment
        self._experiment = experiment_id(client, experiment, artifacts)
        self._runs: dict[str, str] = {}
        self._open: set[str] = set()
        earlier = [entry for entry in read_json_lines(queue_file) if "trial" in entry]
        new = find_run(client, self._experiment, name) is None
        tags = {"gtvray.sweep": name, "mlflow.runName": name}
        self.run_id = find_or_create_run(client, self._experiment, name, tags)
        again = bool(earlier) and (new or bool(read_rejections(queue_file)) or self._lacks_trials(earlier))
        # A trial that was killed reports its last epoch again with a new time stamp, a second row to MLflow.
        self._logged = {_identity(entry) for entry in earlier if "metrics" in entry}
        # Trials that an earlier process left running end with the parent run, unless they are resumed.
        for entry in earlier:
            # Tags and files may follow the end of a trial, such as those of the best one; they do not reopen it.
            if entry["trial"] is not None and (entry.get("params") or "metrics" in entry):
                self._open.add(entry["trial"])
            if "status" in entry:
                self._open.discard(entry["trial"])
        self._ended = earlier[-1].get("status") if earlier and earlier[-1]["trial"] is None else None
        self._queue = MetricQueue(queue_file, self._deliver, again)

    @property
    def has_ended(self) -> bool:
        """Whether the last entry ends the parent run, so that nothing is missing but perhaps deliveries."""
        return self._ended is not None

    @property
    def rejections(self) -> list[Rejection]:
        """What MLflow refused permanently so far."""
        return read_rejections(self._file)

    def describe(self, params: Mapping[str, Any], tags: Mapping[str, str], trial: str | None = None) -> None:
        """Set params and tags of a trial's run; by default of the parent run."""
        self._put({"trial": trial, "params": _texts(params), "tags": dict(tags)})

    def start(self, trial: str, params: Mapping[str, Any], tags: Mapping[str, str]) -> None:
        """Set params and tags of a trial; its run is created, or continued if it exists."""
        self._open.add(trial)
        self.describe(params, tags, trial)

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
            self._put(entry)

    def note(self, trial: str, text: str) -> None:
        """Set the tag `gtvray.notes` of a trial's run to an incident and its handling; replaces an earlier one."""
        self.describe({}, {"gtvray.notes": text[:_TAG_LIMIT]}, trial)

    def attach(self, trial: str | None, path: Path, into: str) -> None:
        """Add a file or folder to a run's artifacts under `into`; it is read when the entry is delivered.

        The path is stored relative to the queue's folder, so it stays valid if the workspace is moved.
        """
        relative = os.path.relpath(path.resolve(), self._folder)
        self._put({"trial": trial, "artifact": relative, "into": into})

    def finish(self, trial: str, status: str) -> None:
        """End a trial's run as FINISHED, FAILED or KILLED."""
        self._open.discard(trial)
        self._end(trial, status)

    def finish_run(self, status: str) -> None:
        """End the parent run and the runs of trials that are still open; without effect if it has that status."""
        for trial in sorted(self._open):
            self.finish(trial, status)
        if self._ended != status:
            self._end(None, status)
            self._ended = status

    def _end(self, trial: str | None, status: str) -> None:
        self._put({"trial": trial, "status": status, "at_ms": int(time.time() * 1000)})

    def _put(self, entry: Entry) -> None:
        self._ended = None
        self._queue.put(entry)

    def trial_run_id(self, trial: str) -> str:
        """Return the id of a trial's MLflow run; that of the parent run if MLflow does not answer or has no such run.

        A bundle stores the run that trained it, and is written even if MLflow is unreachable.
        """
        if trial not in self._runs:
            try:
                found = find_run(self._client, self._experiment, self._key(trial))
                if found is None:
                    return self.run_id
                require_run_kept(self._client, found)
            except Exception:  # noqa: BLE001  # MLflow's client raises errors of several libraries
                return self.run_id
            self._runs[trial] = str(found.info.run_id)
        return self._runs[trial]

    def flush(self, timeout_s: float = 30.0) -> bool:
        """Wait for delivery; return False if MLflow is still unreachable."""
        return self._queue.flush(timeout_s)

    def close(self, timeout_s: float = 30.0) -> bool:
        """Flush and stop; return False if entries stay queued on disk."""
        return self._queue.close(timeout_s)

    def _deliver(self, entries: list[Entry]) -> list[Rejection]:
        """Send entries, and return those that MLflow refuses permanently."""
        try:
            self._send(entries)
        except Exception as error:
            if not is_permanent(error):
                raise
            if len(entries) > 1:
                return [rejection for entry in entries for rejection in self._deliver([entry])]
            return self._refused(entries[0], error)
        return []

    def _refused(self, entry: Entry, error: Exception) -> list[Rejection]:
        """Send the parts of an entry that MLflow accepts, and return the others with the reason."""
        try:
            require_experiment(self._client, self._experiment_name)
            run = self._client.get_run(self._run(entry["trial"]))
            require_run_kept(self._client, run)
        except InputError as deleted:
            # This error contains the command that restores it, unlike MLflow's own message.
            return [Rejection(entry, reason_of(deleted))]
        except Exception as missing:
            if not is_permanent(missing):
                raise
            return [Rejection(entry, reason_of(missing))]
        halves = _halves(entry)
        if not halves:
            return [Rejection(entry, reason_of(error))]
        return [rejection for half in halves for rejection in self._deliver([half])]

    def _send(self, entries: list[Entry]) -> None:
        from mlflow.entities import Metric

        pending: dict[str, list[Metric]] = {}
        for entry in entries:
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
                self._describe(run_id, entry)
        for run_id, metrics in pending.items():
            self._client.log_batch(run_id, metrics=metrics)

    def _describe(self, run_id: str, entry: Entry) -> None:
        from mlflow.entities import Param, RunTag

        tags = [RunTag(name, value) for name, value in entry["tags"].items()]
        if entry["trial"] is not None:
            # The parent run may be another one than before, if the first was deleted.
            tags.append(RunTag("mlflow.parentRunId", self.run_id))
        params = list(entry["params"].items())
        for first in range(0, max(1, len(params)), _BATCH):
            batch = [Param(name, value) for name, value in params[first : first + _BATCH]]
            self._client.log_batch(run_id, params=batch, tags=tags)

    def _upload(self, run_id: str, path: Path, into: str) -> None:
        if path.is_dir():
            self._client.log_artifacts(run_id, str(path), into)
        elif path.is_file():
            self._client.log_artifact(run_id, str(path), into)
        else:
            raise NotFoundError("the file was removed before it was sent", found=path)

    def _run(self, trial: str | None) -> str:
        if trial is None:
            return self.run_id
        if trial not in self._runs:
            tags = {TRIAL_TAG: trial, "mlflow.parentRunId": self.run_id, "mlflow.runName": f"trial-{trial}"}
            self._runs[trial] = find_or_create_run(self._client, self._experiment, self._key(trial), tags)
        return self._runs[trial]

    def _key(self, trial: str) -> str:
        return f"{self._name}/{trial}"

    def _lacks_trials(self, earlier: list[Entry]) -> bool:
        """Whether MLflow has no run, not even a deleted one, of a trial that was recorded before."""
        trials = {entry["trial"] for entry in earlier if entry["trial"] is not None}
        return bool(trials) and not trials <= trials_of(self._client, self._experiment, self.run_id)


def _identity(entry: Entry) -> tuple[str | None, int, frozenset[str]]:
    """Return what identifies logged metrics: trial, epoch and metric names."""
    return entry["trial"], entry["step"], frozenset(entry["metrics"])


def _texts(params: Mapping[str, Any]) -> dict[str, str]:
    return {name: str(value)[:_PARAM_LIMIT] for name, value in params.items()}


def _halves(entry: Entry) -> list[Entry]:
    """Split an entry with several params, tags or metrics into two; return no entries if it has a single one."""
    names = [(part, name) for part in _PARTS for name in entry.get(part, {})]
    if len(names) < 2:
        return []
    middle = len(names) // 2
    return [_with_only(entry, set(half)) for half in (names[:middle], names[middle:])]


def _with_only(entry: Entry, names: set[tuple[str, str]]) -> Entry:
    kept = {part: {n: v for n, v in entry[part].items() if (part, n) in names} for part in _PARTS if part in entry}
    return {**entry, **kept}
