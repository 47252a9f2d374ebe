"""Tracking stores that tests open in their own process."""

from __future__ import annotations

import warnings
from pathlib import Path

from mlflow.tracking import MlflowClient

from gtvray.io import sqlite_uri
from gtvray.tracking import connect_mlflow


def open_store(database: Path, artifacts: Path) -> MlflowClient:
    """A client of a SQLite store, which is made when it is not there."""
    with warnings.catch_warnings():
        # SQLAlchemy's and MLflow's own deprecations, when they are loaded.
        warnings.simplefilter("ignore")
        return connect_mlflow(sqlite_uri(database), artifacts)
