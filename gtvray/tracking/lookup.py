"""Lookup of runs by key, and checks for deleted runs and experiments whose errors give the command to restore them."""

from __future__ import annotations

import hashlib
import re
import shlex
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING
from urllib.parse import urlparse

from gtvray.errors import InputError

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.tracking import MlflowClient

KEY_TAG, TRIAL_TAG = "gtvray.key", "ray.trial_id"
# MLflow filters have no escape for a quote or a backslash within a string.
_SAFE = re.compile(r"[\w /.:+-]*", re.ASCII)
_MAX_RESULTS = 1000


def key_text(key: str) -> str:
    """Return a key as stored in a run's tag: unchanged, or its sha256 if a filter cannot express it."""
    return key if _SAFE.fullmatch(key) else f"sha256:{hashlib.sha256(key.encode()).hexdigest()}"


def filter_text(value: str) -> str | None:
    """Return a string quoted for an MLflow filter; None if a filter cannot express it."""
    return f"'{value}'" if _SAFE.fullmatch(value) else None


def find_run(client: MlflowClient, experiment: str, key: str) -> Run | None:
    """Find the run of a key, deleted or not; an active run is preferred to a deleted one.

    Args:
        client: client of the store.
        experiment: the experiment's id.
        key: the key given to `find_or_create_run`.
    """
    from mlflow.entities import ViewType

    text = key_text(key)
    runs = client.search_runs([experiment], f"tags.`{KEY_TAG}` = '{text}'", ViewType.ALL, max_results=_MAX_RESULTS)
    # Some databases compare case-insensitively.
    exact = [run for run in runs if run.data.tags.get(KEY_TAG) == text]
    return min(exact, key=_deleted, default=None)


def trials_of(client: MlflowClient, experiment: str, parent: str) -> set[str]:
    """Return the ids of the trials that have a run, deleted or not, below a parent run.

    Args:
        client: client of the store.
        experiment: the experiment's id.
        parent: id of the parent run.
    """
    from mlflow.entities import ViewType

    children, token, trials = f"tags.`mlflow.parentRunId` = '{parent}'", None, set()
    while True:
        page = client.search_runs([experiment], children, ViewType.ALL, max_results=_MAX_RESULTS, page_token=token)
        trials |= {run.data.tags[TRIAL_TAG] for run in page if TRIAL_TAG in run.data.tags}
        token = page.token
        if not token:
            return trials


def all_runs(client: MlflowClient, experiment: str) -> Iterator[Run]:
    """Yield all runs of an experiment by its name, deleted ones too; none if it does not exist.

    Raises:
        InputError: the experiment was deleted; the error gives the command that restores it.
    """
    from mlflow.entities import ViewType

    require_experiment(client, experiment)
    found, token = client.get_experiment_by_name(experiment), None
    while found is not None:
        page = client.search_runs(
            [found.experiment_id], run_view_type=ViewType.ALL, max_results=_MAX_RESULTS, page_token=token
        )
        yield from page
        token = page.token
        if not token:
            return


def require_experiment(client: MlflowClient, name: str) -> None:
    """Refuse an experiment that was deleted.

    Raises:
        InputError: the experiment was deleted; the error gives the command that restores it.
    """
    found = client.get_experiment_by_name(name)
    if found is not None and found.lifecycle_stage == "deleted":
        raise InputError(
            "the MLflow experiment was deleted",
            where=client.tracking_uri,
            found=f"experiment {name}, deleted",
            do=f"restore it: {_command(client, 'experiments', 'restore', '--experiment-id', found.experiment_id)}",
        )


def require_run_kept(client: MlflowClient, run: Run) -> None:
    """Refuse a run that was deleted, or whose experiment was deleted.

    Raises:
        InputError: one of them was deleted; the error gives the command that restores it.
    """
    experiment = client.get_experiment(run.info.experiment_id)
    require_experiment(client, experiment.name)
    if _deleted(run):
        raise InputError(
            "the MLflow run was deleted",
            where=client.tracking_uri,
            found=f"run {run.info.run_name}, deleted",
            do=f"restore it: {_command(client, 'runs', 'restore', '--run-id', run.info.run_id)}",
        )


def require_recordable(client: MlflowClient, experiment: str, name: str | None = None) -> None:
    """Check, before any work is done, that MLflow can record a sweep or training.

    Args:
        client: client of the store.
        experiment: name of the experiment.
        name: name of a resumed sweep or training; its run and the runs of its trials are checked as well.

    Raises:
        InputError: one of them was deleted; the error gives the command that restores it.
    """
    from mlflow.entities import ViewType

    require_experiment(client, experiment)
    found = client.get_experiment_by_name(experiment)
    if name is None or found is None:
        return
    parent = find_run(client, found.experiment_id, name)
    if parent is None:
        return
    require_run_kept(client, parent)
    children = f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'"
    deleted = client.search_runs([found.experiment_id], children, ViewType.DELETED_ONLY, max_results=_MAX_RESULTS)
    _require_none_deleted(client, found.experiment_id, name, deleted)


def _require_none_deleted(client: MlflowClient, experiment: str, name: str, deleted: Iterable[Run]) -> None:
    for run in deleted:
        trial = run.data.tags.get(TRIAL_TAG)
        # A newer run of the trial may have replaced the deleted one.
        current = find_run(client, experiment, f"{name}/{trial}") if trial is not None else None
        if current is not None:
            require_run_kept(client, current)


def _deleted(run: Run) -> bool:
    return bool(run.info.lifecycle_stage == "deleted")


def _command(client: MlflowClient, *arguments: str) -> str:
    # The command has no option for the store. The URI's password is kept out of error messages.
    parsed = urlparse(client.tracking_uri)
    uri = client.tracking_uri
    if parsed.password is not None:
        uri = uri.replace(f":{parsed.password}@", ":PASSWORD@")
    return f"MLFLOW_TRACKING_URI={shlex.quote(uri)} mlflow {shlex.join(map(str, arguments))}"
