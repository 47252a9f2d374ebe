"""Prepared phantoms, settings with which an epoch takes a fraction of a second, and an MLflow store."""

from __future__ import annotations

from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from gtvray.config import Config, load_config
from gtvray.data import CachedCase, CaseCache
from gtvray.datasets import index_dataset

from ..stores import open_store


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
def cases(phantoms: Path, config: Config, tmp_path_factory: pytest.TempPathFactory) -> list[CachedCase]:
    cache = CaseCache(tmp_path_factory.mktemp("tuning") / "cache", config.preprocessing, config.cache)
    return cache.prepare_all(index_dataset(phantoms).cases[:6])


@pytest.fixture(scope="session")
def train(cases: list[CachedCase]) -> list[CachedCase]:
    return cases[:4]


@pytest.fixture(scope="session")
def selection(cases: list[CachedCase]) -> list[CachedCase]:
    return cases[4:]


@pytest.fixture(scope="session")
def client(tmp_path_factory: pytest.TempPathFactory) -> MlflowClient:
    folder = tmp_path_factory.mktemp("mlflow")
    return open_store(folder / "mlflow.db", folder / "artifacts")
