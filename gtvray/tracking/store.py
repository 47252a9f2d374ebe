"""Reaching MLflow: checked at once, quiet, and never unpickling."""

from __future__ import annotations

import logging
import os
import socket
import sqlite3
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlparse

from gtvray.errors import InputError, ResourceError
from gtvray.io import atomic_path, sqlite_uri

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

_CONNECT_TIMEOUT_S = 5.0
_DEFAULT_PORTS = {"http": 80, "https": 443}


def connect_mlflow(uri: str, artifacts: Path) -> MlflowClient:
    """A client of a tracking store; a SQLite store is made, and migrated, when needed.

    Args:
        uri: `sqlite:///path`, `http(s)://host:port`, or any that MLflow knows.
        artifacts: where a SQLite store keeps its artifacts.

    Raises:
        ResourceError: the server does not answer, or the database cannot be opened.
        InputError: the URI is of no known kind.
    """
    parsed = urlparse(uri)
    if parsed.scheme in _DEFAULT_PORTS:
        _require_answer(uri, parsed.hostname or "", parsed.port or _DEFAULT_PORTS[parsed.scheme])
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
    if parsed.scheme.startswith("sqlite"):
        # Decoded as SQLAlchemy does, so that the file that is checked is the one that is opened.
        _ensure_database(Path(unquote(uri.partition(":///")[2])))
    try:
        mlflow.set_tracking_uri(uri)
        client = Client(uri)
        client.search_experiments(max_results=1)
    except (MlflowException, OSError) as error:
        text = str(error)
        if "URI" in text or "scheme" in text:
            raise InputError("MLflow does not know this URI", where=uri, found=text) from error
        raise ResourceError("cannot reach MLflow", where=uri, found=text, do="check tracking.uri") from error
    if parsed.scheme.startswith("sqlite"):
        artifacts.mkdir(parents=True, exist_ok=True)
    return client


def experiment_id(client: MlflowClient, name: str, artifacts: Path | None) -> str:
    """The experiment's id; it is made when it is not there.

    Args:
        client: of the store.
        name: of the experiment.
        artifacts: where its artifacts go; None leaves it to the server.
    """
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
        key: names the run and no other of the experiment.
        tags: of a run that is made.
    """
    runs = client.search_runs([experiment], f"tags.`gtvray.key` = '{key}'", max_results=1)
    if runs:
        return str(runs[0].info.run_id)
    return str(client.create_run(experiment, tags={"gtvray.key": key, **tags}).info.run_id)


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


def _ensure_database(path: Path) -> None:
    """Make the database if there is none, whole or not at all; refuse what is none.

    MLflow could not go on with a half-migrated one, and would try for minutes to open another kind of file.
    """
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient as Client

    try:
        if not path.exists():
            with atomic_path(path) as temporary:
                Client(sqlite_uri(temporary.resolve())).search_experiments(max_results=1)
        with closing(sqlite3.connect(path, timeout=_CONNECT_TIMEOUT_S)) as database:
            database.execute("PRAGMA schema_version").fetchone()
    except (sqlite3.Error, MlflowException) as error:
        raise ResourceError(
            "cannot open the MLflow database", where=path, found=error, do="correct tracking.uri, or move it away"
        ) from error
