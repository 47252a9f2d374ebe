"""Tracking stores that tests open in their own process, or serve from another one."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request
import warnings
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path

from mlflow.tracking import MlflowClient

from gtvray.io import Workspace, sqlite_uri
from gtvray.tracking import connect_mlflow


def open_store(database: Path, artifacts: Path) -> MlflowClient:
    """Return a client of a SQLite store, which is created if it does not exist."""
    with warnings.catch_warnings():
        # SQLAlchemy and MLflow raise deprecation warnings when they are imported.
        warnings.simplefilter("ignore")
        return connect_mlflow(sqlite_uri(database), artifacts)


def copied_workspace(client: MlflowClient, root: Path) -> Workspace:
    """A workspace with an empty tracking store, copied from a client's: migrating one takes longer than most tests."""
    workspace = Workspace(root)
    workspace.root.mkdir()
    shutil.copy(client.tracking_uri.removeprefix("sqlite:///"), workspace.mlflow_database)
    with closing(sqlite3.connect(workspace.mlflow_database)) as connection:
        for table in ("runs", "experiments"):
            connection.execute(f"DELETE FROM {table} WHERE experiment_id > 0")
        connection.commit()
    return workspace


class MlflowServer:
    """`mlflow server` that can be restarted on the same port.

    Args:
        backend: SQLite database, or the URI of another one.
        folder: for its log and artifacts.
        options: further options, such as those of its artifact store.
        environment: further variables, such as those that lead to that store.
    """

    def __init__(
        self,
        backend: Path | str,
        folder: Path,
        options: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        uri = backend if isinstance(backend, str) else f"sqlite:///{backend}"
        self._command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port),
                         "--workers", "1", "--backend-store-uri", uri, *options]  # fmt: skip
        self._environment = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", **(environment or {})}
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with (self._folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                stdout=log,
                stderr=log,
                env={**os.environ, **self._environment},
                start_new_session=True,
                cwd=self._folder,
            )
        while not self._responds():
            assert self._process.poll() is None, (self._folder / "server.log").read_text()
            time.sleep(0.1)

    def kill(self) -> None:
        if self._process is not None and self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def _responds(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=2):
                return True
        except OSError:
            return False
