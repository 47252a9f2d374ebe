"""The shadow version in a real registry: which ones are refused, and its records in MLflow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from mlflow.tracking import MlflowClient

from gtvray.api.arguments import as_config
from gtvray.api.shadow import SHADOW_TAG, ShadowVersion
from gtvray.errors import ConfigError, NotFoundError
from gtvray.io import Workspace, append_json_line
from gtvray.models import Bundle
from gtvray.registry import Registry
from gtvray.serving import ShadowPlan
from gtvray.serving.shadow import RecordSender, record_file

from ..bundles import random_bundle
from ..stores import open_store


class Registered:
    """A workspace whose registry has version 1, which is served, 2, and 3, which has no golden cases."""

    def __init__(self, root: Path) -> None:
        self.workspace = Workspace(root)
        self.client: MlflowClient = open_store(self.workspace.mlflow_database, self.workspace.artifacts)
        self.registry = Registry(self.client, "gtvray-gtv", self.workspace.bundles)
        experiment = self.client.create_experiment("e", artifact_location=(root / "mlartifacts" / "e").as_uri())
        self.run_id = str(self.client.create_run(experiment).info.run_id)
        self.bundles = [self._register(seed) for seed in (1, 2, 3)]
        self.registry.point_champion("1")
        self.versions = self.workspace.serving / "8000.shadow.json"

    def _register(self, seed: int) -> Bundle:
        bundle = random_bundle(self.workspace.root / f"made-{seed}", seed)
        version = self.registry.register(bundle, self.run_id)
        if seed < 3:
            golden = self.workspace.root / f"golden-{seed}"
            golden.mkdir()
            (golden / "golden.json").write_text("{}\n")
            self.registry.add_golden(version, golden)
        return bundle

    def shadow(self, number: int) -> ShadowVersion:
        config = as_config({"serving.shadow_version": number})
        return ShadowVersion(self.workspace, config, self.bundles[0].digest, follows=True)

    def plan(self) -> ShadowPlan:
        return self.shadow(2).plan(self.versions, lambda *_: None)

    def record(self, number: int, dice: float, served: str = "1") -> dict[str, Any]:
        """A comparison of version 2."""
        return {
            "at": f"2026-01-31T09:12:3{number}.120+00:00",
            "number": number,
            "request": "c13c198b",
            "dice": dice,
            "volume_ml": {"served": 10.0, "shadow": 8.5},
            "seconds": {"served": 1.0, "shadow": 2.0},
            "version": {"served": served, "shadow": "2"},
            "digest": {"served": self.bundles[0].digest, "shadow": self.bundles[1].digest},
        }

    def logged(self, name: str) -> list[tuple[int, float]]:
        return sorted((metric.step, metric.value) for metric in self.client.get_metric_history(self.run_id, name))


@pytest.fixture(scope="module")
def registered(tmp_path_factory: pytest.TempPathFactory) -> Registered:
    root = tmp_path_factory.mktemp("shadow") / "runs"
    root.mkdir()
    return Registered(root)


@pytest.mark.slow
def test_version_that_cannot_be_a_shadow_is_refused(registered: Registered) -> None:
    with pytest.raises(ConfigError, match="is the one that is served"):
        registered.shadow(1)
    with pytest.raises(NotFoundError, match="no golden cases"):
        registered.shadow(3)
    with pytest.raises(NotFoundError, match="no such model version"):
        registered.shadow(4)


@pytest.mark.slow
def test_records_reach_the_run_of_the_candidate_once(registered: Registered) -> None:
    file = record_file(registered.versions)
    for number, dice in ((1, 0.5), (2, 0.75)):
        append_json_line(file, registered.record(number, dice))
    append_json_line(file, {"number": 3})
    for later in (None, registered.record(4, 1.0, served="3")):
        if later is not None:
            append_json_line(file, later)
        # Also what was there before it started, and once only after a restart.
        RecordSender(registered.versions, registered.plan().deliver, 60).stop()
    assert registered.logged("shadow/version_1/dice") == [(1, 0.5), (2, 0.75)]
    assert registered.logged("shadow/version_1/volume_difference_ml") == [(1, -1.5), (2, -1.5)]
    assert registered.logged("shadow/version_3/dice") == [(4, 1.0)]
    tags = registered.client.get_model_version("gtvray-gtv", "2").tags
    assert tags[SHADOW_TAG] == (
        "version 1: 2 scans, mean Dice 0.6250, smallest 0.5000; version 3: 1 scans, mean Dice 1.0000, smallest 1.0000"
    )


@pytest.mark.slow
def test_shadow_ends_when_it_becomes_champion(registered: Registered) -> None:
    plan = registered.plan()
    candidate = plan.find()
    assert candidate is not None
    assert (candidate.version, candidate.digest) == ("2", registered.bundles[1].digest)
    registered.registry.point_champion("2")
    assert plan.find() is None
    registered.registry.point_champion("1")
    assert plan.find() == candidate
