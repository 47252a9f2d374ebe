"""Connections to MLflow that fail fast, log nothing and never unpickle; experiments and runs by name."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlparse

from gtvray.errors import InputError, ResourceError
from gtvray.io import LOCATION, Workspace, same_folder
from gtvray.runtime import bypass_proxies, proxy_endpoint, proxy_for, without_credentials
from gtvray.tracking.artifacts import require_artifact_client
from gtvray.tracking.database import database_path, ensure_database, explain_database_error
from gtvray.tracking.lookup import KEY_TAG, find_run, key_text, require_experiment, require_run_kept
from gtvray.tracking.relocation import update_locations

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

_CONNECT_TIMEOUT_S = 5.0
_DEFAULT_PORTS = {"http": 80, "https": 443}


def connect_mlflow(uri: str, artifacts: Path, *, writing: bool = True) -> MlflowClient:
    """Open a client of a tracking store; an SQLite store is created if it does not exist.

    Args:
        uri: `sqlite:///path`, `http(s)://host:port`, or another URI that MLflow supports.
        artifacts: artifact folder of an SQLite store.
        writing: require write access; False for a store that is only read.

    Raises:
        ResourceError: the server does not respond, or the database cannot be opened.
        InputError: the URI is not supported, or the database belongs to a copied workspace.
    """
    parsed = urlparse(uri)
    proxy = None
    if parsed.scheme in _DEFAULT_PORTS:
        # MLflow's client applies the environment's proxies even to a server on this host.
        bypass_proxies(uri)
        proxy = proxy_for(uri)
        if proxy is None:
            _require_connection(uri, parsed.hostname or "", parsed.port or _DEFAULT_PORTS[parsed.scheme])
        else:
            _require_connection(f"{uri}, through the proxy {without_credentials(proxy)}", *proxy_endpoint(proxy))
    os.environ.setdefault("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    # MLflow's client prints links to runs on stdout, which is reserved for the result with `--json`.
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    # The metric queue retries deliveries; MLflow's own retries would block the caller for minutes.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    import mlflow
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient as Client

    # After the import, which configures MLflow's loggers.
    for name in ("alembic", "mlflow"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for name in [name for name in logging.root.manager.loggerDict if name.startswith("mlflow.")]:
        logging.getLogger(name).setLevel(logging.ERROR)
    # This logger writes the stack trace of errors that are also raised.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    database = database_path(uri) if parsed.scheme.startswith("sqlite") else None
    if database is not None:
        _relocate(database, artifacts, writing)
        ensure_database(database, writing)
    try:
        mlflow.set_tracking_uri(uri)
        client = Client(uri)
        client.search_experiments(max_results=1)
    except (MlflowException, OSError) as error:
        message = str(error)
        explained = explain_database_error(database, message) if database is not None else None
        if explained is not None:
            raise explained from error
        if "URI" in message or "scheme" in message:
            raise InputError("MLflow does not support this URI", where=uri, found=message) from error
        where, do = uri, "check tracking.uri"
        if proxy is not None:
            where = f"{uri}, through the proxy {without_credentials(proxy)}"
            do = "check tracking.uri; add its host to NO_PROXY if the proxy cannot reach it"
        raise ResourceError("cannot reach MLflow", where=where, found=message, do=do) from error
    if database is not None and writing:
        artifacts.mkdir(parents=True, exist_ok=True)
    return client


def experiment_id(client: MlflowClient, name: str, artifacts: Path | None) -> str:
    """Return the experiment's id; the experiment is created if it does not exist.

    Args:
        client: client of the store.
        name: name of the experiment.
        artifacts: artifact folder of a new experiment; None leaves it to the server.

    Raises:
        InputError: the experiment was deleted in MLflow.
        ResourceError: its artifacts are in an object store whose client is not installed.
    """
    from mlflow.exceptions import MlflowException

    require_experiment(client, name)
    found = client.get_experiment_by_name(name)
    if found is None:
        location = artifacts.resolve().as_uri() if artifacts is not None else None
        try:
            client.create_experiment(name, artifact_location=location)
        except MlflowException as error:
            # Another process has created it in the meantime.
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        found = client.get_experiment_by_name(name)
        assert found is not None
    require_artifact_client(found.artifact_location)
    return str(found.experiment_id)


def find_or_create_run(client: MlflowClient, experiment: str, key: str, tags: Mapping[str, str]) -> str:
    """Return the id of the run with a key; the run is created if it does not exist, so retries are idempotent.

    Args:
        client: client of the store.
        experiment: the experiment's id.
        key: any string, unique within the experiment.
        tags: tags of a new run.

    Raises:
        InputError: the run was deleted in MLflow.
    """
    found = find_run(client, experiment, key)
    if found is not None:
        require_run_kept(client, found)
        return str(found.info.run_id)
    return str(client.create_run(experiment, tags={KEY_TAG: key_text(key), **tags}).info.run_id)


def log_metrics(client: MlflowClient, run_id: str, metrics: Mapping[str, float], step: int, at_ms: int) -> None:
    """Log metrics to a run, idempotent as long as the time stamp is the same.

    Args:
        client: client of the store.
        run_id: the run, which may have ended.
        metrics: name -> value.
        step: their step.
        at_ms: time stamp, Unix time in milliseconds.
    """
    from mlflow.entities import Metric

    client.log_batch(run_id, metrics=[Metric(name, value, at_ms, step) for name, value in metrics.items()])


def _require_connection(uri: str, host: str, port: int) -> None:
    try:
        with socket.create_connection((host, port), timeout=_CONNECT_TIMEOUT_S):
            return
    except OSError as error:
        raise ResourceError(
            "cannot reach MLflow",
            where=uri,
            found=error,
            do="start the server or correct tracking.uri; without tracking.uri, SQLite in the workspace is used",
        ) from error


def _relocate(database: Path, artifacts: Path, writing: bool) -> None:
    """Update the artifact locations of a workspace's own database after a move; refuse a copied workspace."""
    workspace = Workspace(database.parent)
    if same_folder(workspace.root, artifacts.parent) or (workspace.root / LOCATION).exists():
        update_locations(workspace, writing)
