"""Prepared phantoms, settings with which an epoch takes a fraction of a second, and an MLflow store."""

from __future__ import annotations

import pytest
from mlflow.tracking import MlflowClient

from gtvray.config import Config, load_config

from ..stores import open_store
from ..training.conftest import cases, selection, train  # noqa: F401


@pytest.fixture(scope="session")
def config() -> Config:
    return load_config(
        overrides=[
            "preprocessing.spacing_mm=[8, 8, 8]",
            "network.features=[4, 8, 8]",
            "training.patch_ijk=[16, 16, 16]",
            "training.epochs=2",
            "training.steps_per_epoch=1",
            "training.precision=fp32",
            "inference.overlap=0",
        ]
    )


@pytest.fixture(scope="session")
def client(tmp_path_factory: pytest.TempPathFactory) -> MlflowClient:
    folder = tmp_path_factory.mktemp("mlflow")
    return open_store(folder / "mlflow.db", folder / "artifacts")
