"""A tracking store on SQLite, created once: its migrations take longer than any test."""

from __future__ import annotations

from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from ..stores import open_store


@pytest.fixture(scope="session")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("mlflow") / "mlflow.db"


@pytest.fixture(scope="session")
def client(database: Path) -> MlflowClient:
    return open_store(database, database.parent / "artifacts")
