"""A tracking store on SQLite, made once: migrating it takes longer than any test."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from gtvray.tracking import connect_mlflow


@pytest.fixture(scope="session")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("mlflow") / "mlflow.db"


@pytest.fixture(scope="session")
def client(database: Path) -> MlflowClient:
    with warnings.catch_warnings():
        # SQLAlchemy's and MLflow's own deprecations, when they are loaded.
        warnings.simplefilter("ignore")
        return connect_mlflow(f"sqlite:///{database}", database.parent / "artifacts")
