"""An MLflow store on SQLite, created once, bundles with random weights, and evidence about them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import mlflow
import pytest
from mlflow.tracking import MlflowClient

from gtvray.evaluation import CaseScore
from gtvray.models import Bundle
from gtvray.promotion import Evidence

from ..bundles import random_bundle
from ..scores import made_score
from ..stores import open_store

MakeBundle = Callable[[int], Bundle]
MakeEvidence = Callable[..., Evidence]


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> MlflowClient:
    folder = tmp_path_factory.mktemp("mlflow")
    return open_store(folder / "mlflow.db", folder / "artifacts")


@pytest.fixture
def client(store: MlflowClient) -> MlflowClient:
    """The store's client. MLflow resolves `models:/` in its global store, which a test may have changed."""
    mlflow.set_tracking_uri(store.tracking_uri)
    return store


@pytest.fixture
def run_id(client: MlflowClient, tmp_path: Path) -> str:
    experiment = client.create_experiment(tmp_path.name, artifact_location=(tmp_path / "artifacts").as_uri())
    return str(client.create_run(experiment).info.run_id)


@pytest.fixture
def make_bundle(tmp_path: Path) -> MakeBundle:
    """A factory of bundles, by the seed of their weights."""

    def make(seed: int) -> Bundle:
        return random_bundle(tmp_path / f"made-{seed}", seed)

    return make


def scores(dsc: Sequence[float]) -> tuple[CaseScore, ...]:
    return tuple(made_score(str(n), value, missed=value == 0) for n, value in enumerate(dsc))


@pytest.fixture(scope="session")
def make_evidence() -> MakeEvidence:
    """A factory of evidence for a digest; by default the gate accepts it."""

    def make(
        digest: str,
        candidate: Sequence[float] = (0.8, 0.7, 0.75),
        baseline: Sequence[float] = (0.2, 0.15, 0.1),
        loads_fresh: bool = True,
        looks: int = 1,
    ) -> Evidence:
        return Evidence(digest, "data-1", scores(candidate), scores(baseline), loads_fresh, looks)

    return make
