"""An MLflow store on SQLite, created once, bundles with random weights, and evidence about them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow.tracking import MlflowClient

from gtvray.config import PromotionConfig
from gtvray.errors import InputError
from gtvray.evaluation import CaseScore
from gtvray.models import Bundle
from gtvray.promotion import Evidence, Request, adopt, promote, require_champion, restore, rollback
from gtvray.registry import DecisionLog, ModelVersion, Registry

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
    """A factory of evidence for a digest; by default the gate accepts it, over a champion if one is named."""

    def make(
        digest: str,
        candidate: Sequence[float] = (0.8, 0.7, 0.75),
        baseline: Sequence[float] = (0.2, 0.15, 0.1),
        champion: Sequence[float] = (),
        champion_digest: str = "",
        **changes: Any,
    ) -> Evidence:
        champion = champion or [max(0.01, value - 0.3 + 0.001 * n) for n, value in enumerate(candidate)]
        values: dict[str, Any] = {"loads_fresh": True, "looks": 1, "cases": "cases-1", **changes}
        return Evidence(
            digest=digest,
            data="data-1",
            candidate=scores(candidate),
            baseline=scores(baseline),
            champion_digest=champion_digest,
            champion=scores(champion) if champion_digest else (),
            **values,
        )

    return make


class Promotions:
    """The registry and decision log of a workspace, and promotion of random bundles by the seed of their weights."""

    def __init__(self, client: MlflowClient, root: Path, run_id: str, make_evidence: MakeEvidence) -> None:
        self.client, self.root, self.run_id, self.make_evidence = client, root, run_id, make_evidence
        self.name = f"model-{root.name}".replace("'", "")
        self.registry = Registry(client, self.name, root / "bundles")
        self.log = DecisionLog(client, self.name, root / "mlartifacts", "Ada")

    def bundle(self, seed: int) -> Bundle:
        folder = self.root / f"made-{seed}"
        if folder.exists():
            return Bundle.load(folder)
        return random_bundle(folder, seed, {"mlflow_run": self.run_id, "config": {}})

    def evidence(self, seed: int, **changes: Any) -> Evidence:
        """Evidence that compares a bundle with the present champion."""
        champion = require_champion(self.registry, self.log)
        changes = {"champion_digest": champion.digest if champion is not None else "", **changes}
        return self.make_evidence(self.bundle(seed).digest, **changes)

    def promote(
        self, seed: int, evidence: Evidence | None = None, request: Request | None = None, *, keep_golden: bool = False
    ) -> str:
        """Promote a bundle with golden cases and return its version."""
        bundle = self.bundle(seed)
        golden = self.root / "golden" / bundle.digest[:16]
        if not keep_golden:
            golden.mkdir(parents=True, exist_ok=True)
            (golden / "golden.json").write_text(f'{{"digest": "{bundle.digest}"}}')
        version, _, _ = promote(
            bundle,
            self.run_id,
            evidence or self.evidence(seed),
            config=PromotionConfig(),
            registry=self.registry,
            log=self.log,
            records=self.root / "decisions",
            request=request,
            golden=golden,
        )
        return version.version

    def rollback(self) -> str:
        return rollback(self.registry, self.log, self.root / "decisions").version

    def restore(self) -> str:
        folders = {"bundles": self.root / "bundles", "golden": self.root / "golden"}
        return restore(self.registry, self.log, self.root / "decisions", **folders).version

    def adopt(self, version: str, reason: str) -> ModelVersion:
        return adopt(self.registry, self.log, self.root / "decisions", version=version, reason=reason)

    def refused(self) -> InputError:
        with pytest.raises(InputError, match="changed outside the gate") as caught:
            require_champion(self.registry, self.log)
        return caught.value

    @property
    def champion(self) -> str:
        return self.registry.champion().version

    @property
    def changes(self) -> list[tuple[str, str | None, str | None]]:
        return [(decision.kind, decision.previous, decision.version) for decision in self.log.decisions()]


@pytest.fixture
def promotions(client: MlflowClient, tmp_path: Path, run_id: str, make_evidence: MakeEvidence) -> Promotions:
    return Promotions(client, tmp_path, run_id, make_evidence)
