"""Reaching MLflow: checked at once, quiet, and never unpickling."""

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
from gtvray.tracking.database import database_path, ensure_database, explain_database_error
from gtvray.tracking.lookup import KEY_TAG, find_run, key_text, require_experiment, require_run_kept
from gtvray.tracking.relocation import settle_store

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

_CONNECT_TIMEOUT_S = 5.0
_DEFAULT_PORTS = {"http": 80, "https": 443}


def connect_mlflow(uri: str, artifacts: Path, *, writing: bool = True) -> MlflowClient:
    """A client of a tracking store; a SQLite store is made, and migrated, when needed.

    Args:
        uri: `sqlite:///path`, `http(s)://host:port`, or any that MLflow knows.
        artifacts: where a SQLite store keeps its artifacts.
        writing: whether anything is to be recorded; False for reading from a database that must not be written to.

    Raises:
        ResourceError: the server does not answer, or the database cannot be opened.
        InputError: the URI is of no known kind, or the database is that of a copied workspace.
    """
    parsed = urlparse(uri)
    proxy = None
    if parsed.scheme in _DEFAULT_PORTS:
        # MLflow's client reads the proxies of the environment, also for a server on this machine.
        bypass_proxies(uri)
        proxy = proxy_for(uri)
        if proxy is None:
            _require_answer(uri, parsed.hostname or "", parsed.port or _DEFAULT_PORTS[parsed.scheme])
        else:
            _require_answer(f"{uri}, through the proxy {without_credentials(proxy)}", *proxy_endpoint(proxy))
    os.environ.setdefault("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    # Requests are retried by the spool, which remembers; MLflow's own retries would hold the caller for minutes.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    import mlflow
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient as Client

    # After the import: MLflow sets its loggers up when it is loaded.
    for name in ("alembic", "mlflow"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for name in [name for name in logging.root.manager.loggerDict if name.startswith("mlflow.")]:
        logging.getLogger(name).setLevel(logging.ERROR)
    database = database_path(uri) if parsed.scheme.startswith("sqlite") else None
    if database is not None:
        _settle(database, artifacts, writing)
        ensure_database(database, writing)
    try:
        mlflow.set_tracking_uri(uri)
        client = Client(uri)
        client.search_experiments(max_results=1)
    except (MlflowException, OSError) as error:
        text = str(error)
        explained = explain_database_error(database, text) if database is not None else None
        if explained is not None:
            raise explained from error
        if "URI" in text or "scheme" in text:
            raise InputError("MLflow does not know this URI", where=uri, found=text) from error
        where, do = uri, "check tracking.uri"
        if proxy is not None:
            where = f"{uri}, through the proxy {without_credentials(proxy)}"
            do = "check tracking.uri, and name its host in NO_PROXY if the proxy cannot reach it"
        raise ResourceError("cannot reach MLflow", where=where, found=text, do=do) from error
    if database is not None and writing:
        artifacts.mkdir(parents=True, exist_ok=True)
    return client


def experiment_id(client: MlflowClient, name: str, artifacts: Path | None) -> str:
    """The experiment's id; it is made when it is not there.

    Args:
        client: of the store.
        name: of the experiment.
        artifacts: where its artifacts go; None leaves it to the server.

    Raises:
        InputError: it was deleted in MLflow.
    """
    require_experiment(client, name)
    found = client.get_experiment_by_name(name)
    if found is not None:
        return str(found.experiment_id)
    location = artifacts.resolve().as_uri() if artifacts is not None else None
    return str(client.create_experiment(name, artifact_location=location))


def find_or_create_run(client: MlflowClient, experiment: str, key: str, tags: Mapping[str, str]) -> str:
    """The id of a run by its key: looked up before it is made, so that a second try goes on in it.

    Args:
        client: of the store.
        experiment: the experiment's id.
        key: names the run and no other of the experiment; any text.
        tags: of a run that is made.

    Raises:
        InputError: the run was deleted in MLflow.
    """
    found = find_run(client, experiment, key)
    if found is not None:
        require_run_kept(client, found)
        return str(found.info.run_id)
    return str(client.create_run(experiment, tags={KEY_TAG: key_text(key), **tags}).info.run_id)


def _require_answer(uri: str, host: str, port: int) -> None:
    try:
        with socket.create_connection((host, port), timeout=_CONNECT_TIMEOUT_S):
            return
    except OSError as error:
        raise ResourceError(
            "cannot reach MLflow",
            where=uri,
            found=error,
            do="start the server or correct tracking.uri; leave it out to use SQLite in the workspace",
        ) from error


def _settle(database: Path, artifacts: Path, writing: bool) -> None:
    """Correct the locations in a workspace's own database, if the workspace was moved; refuse those of a copy."""
    workspace = Workspace(database.parent)
    if same_folder(workspace.root, artifacts.parent) or (workspace.root / LOCATION).exists():
        settle_store(workspace, writing)
