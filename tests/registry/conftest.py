"""An MLflow store on SQLite, created once, and bundles with random weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from mlflow.tracking import MlflowClient

from gtvray.config import InferenceConfig, NetworkConfig, PreprocessingConfig
from gtvray.models import Bundle, build_network, weights_of, write_bundle

from ..stores import open_store

MakeBundle = Callable[[int], Bundle]


@pytest.fixture(scope="session")
def client(tmp_path_factory: pytest.TempPathFactory) -> MlflowClient:
    folder = tmp_path_factory.mktemp("mlflow")
    return open_store(folder / "mlflow.db", folder / "artifacts")


@pytest.fixture
def run_id(client: MlflowClient, tmp_path: Path) -> str:
    experiment = client.create_experiment(tmp_path.name, artifact_location=(tmp_path / "artifacts").as_uri())
    return str(client.create_run(experiment).info.run_id)


@pytest.fixture
def make_bundle(tmp_path: Path) -> MakeBundle:
    """A factory of bundles, by the seed of their weights."""

    def make(seed: int) -> Bundle:
        torch.manual_seed(seed)
        network, patch_ijk = NetworkConfig(features=(4, 4, 8)), (16, 16, 16)
        return write_bundle(
            tmp_path / f"made-{seed}",
            weights=weights_of(build_network(network, 1, (4.0, 4.0, 4.0), patch_ijk)),
            preprocessing=PreprocessingConfig(spacing_mm=(4.0, 4.0, 4.0)),
            network=network,
            inference=InferenceConfig(),
            patch_ijk=patch_ijk,
            info={"seed": seed},
        )

    return make
