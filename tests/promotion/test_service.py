"""Promotion and rollback: only through the gate, recorded in the log, safe against changes outside and crashes."""

from __future__ import annotations

import itertools
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from gtvray.config import PromotionConfig
from gtvray.errors import BundleError, GateRefusedError, InputError, NotReadyError
from gtvray.models import Bundle
from gtvray.promotion import DecisionLog, Evidence, promote, rollback
from gtvray.registry import Registry


@dataclass
class Promotions:
    """A registry with its decision log, and promotion of bundles by number."""

    registry: Registry
    log: DecisionLog
    make_bundle: Callable[[int], Bundle]
    make_evidence: Callable[..., Evidence]
    run_id: str

    def promote(self, bundle: Bundle | int, evidence: Evidence | None = None) -> str:
        bundle = self.make_bundle(bundle) if isinstance(bundle, int) else bundle
        evidence = evidence or self.make_evidence(bundle.digest)
        config = PromotionConfig()
        version, _ = promote(bundle, self.run_id, evidence, config=config, registry=self.registry, log=self.log)
        return version.version

    @property
    def changes(self) -> list[tuple[str, str | None, str | None]]:
        return [(decision.kind, decision.previous, decision.version) for decision in self.log.decisions()]


@pytest.fixture
def promotions(
    client: MlflowClient,
    make_bundle: Callable[[int], Bundle],
    make_evidence: Callable[..., Evidence],
    run_id: str,
    tmp_path: Path,
) -> Promotions:
    registry = Registry(client, f"model-{tmp_path.name}", tmp_path / "bundles")
    return Promotions(registry, DecisionLog(tmp_path / "log" / "decisions.jsonl"), make_bundle, make_evidence, run_id)


def test_first_and_second_promotion(promotions: Promotions) -> None:
    assert promotions.promote(0) == "1" == promotions.registry.champion().version
    assert promotions.promote(1) == "2" == promotions.registry.champion().version
    assert promotions.changes == [("promoted", None, "1"), ("promoted", "1", "2")]
    first = promotions.log.decisions()[0]
    assert first.digest == promotions.make_bundle(0).digest
    assert first.evidence["candidate"][0]["dsc"] == 0.8
    assert first.evidence["difference"]["n"] == 3
    assert first.at.endswith("+00:00")


def test_refusal_is_recorded_and_keeps_the_champion(promotions: Promotions) -> None:
    promotions.promote(0)
    worse = promotions.make_bundle(1)
    evidence = promotions.make_evidence(worse.digest, candidate=(0.1, 0.1, 0.0), loads_fresh=False)
    with pytest.raises(GateRefusedError) as caught:
        promotions.promote(worse, evidence)
    assert "must exceed" in caught.value.fields["found"]
    assert "fresh process" in caught.value.fields["found"]
    assert [version.version for version in promotions.registry.versions()] == ["1"]
    assert promotions.registry.champion().version == "1"
    refused = promotions.log.decisions()[-1]
    assert (refused.kind, refused.digest, refused.version, refused.previous) == ("refused", worse.digest, None, "1")
    assert refused.evidence["candidate"][2]["missed"]
    assert len(refused.evidence["reasons"]) == 2
    assert promotions.promote(2) == "2", "a refusal does not block later promotions"


def test_evidence_of_another_bundle_is_refused(promotions: Promotions) -> None:
    with pytest.raises(InputError, match="belongs to another bundle"):
        promotions.promote(promotions.make_bundle(0), promotions.make_evidence(promotions.make_bundle(1).digest))
    assert promotions.log.decisions() == []
    assert promotions.registry.versions() == []


def test_bundle_changed_since_it_was_scored_is_refused(promotions: Promotions) -> None:
    bundle, other = promotions.make_bundle(0), promotions.make_bundle(1)
    shutil.rmtree(bundle.folder)
    shutil.copytree(other.folder, bundle.folder)
    with pytest.raises(BundleError):
        promotions.promote(bundle)
    (bundle.folder / "bundle.json").write_text("{}")
    with pytest.raises(BundleError):
        promotions.promote(bundle)
    assert promotions.registry.versions() == []


def test_repeated_rollback_alternates_between_two_champions(promotions: Promotions) -> None:
    with pytest.raises(NotReadyError, match="no previous champion"):
        rollback(promotions.registry, promotions.log)
    promotions.promote(0)
    with pytest.raises(NotReadyError, match="no previous champion"):
        rollback(promotions.registry, promotions.log)
    promotions.promote(1)
    promotions.promote(2)
    for expected in ("2", "3", "2"):
        assert (
            rollback(promotions.registry, promotions.log).version == expected == promotions.registry.champion().version
        )
    assert promotions.changes[3:] == [("rolled_back", "3", "2"), ("rolled_back", "2", "3"), ("rolled_back", "3", "2")]
    assert promotions.log.decisions()[-1].digest == promotions.make_bundle(1).digest
    assert promotions.promote(3) == "4"
    assert rollback(promotions.registry, promotions.log).version == "2"


def test_promoting_the_champion_again_keeps_its_predecessor(promotions: Promotions) -> None:
    promotions.promote(0)
    assert promotions.promote(1) == promotions.promote(1) == "2"
    assert rollback(promotions.registry, promotions.log).version == "1"


def test_former_champion_can_be_promoted_again(promotions: Promotions) -> None:
    for number, version in ((0, "1"), (1, "2"), (0, "1")):
        assert promotions.promote(number) == version
    assert promotions.changes[-1] == ("promoted", "2", "1")
    assert rollback(promotions.registry, promotions.log).version == "2"


def test_rollback_to_a_damaged_bundle_keeps_the_champion(promotions: Promotions, tmp_path: Path) -> None:
    promotions.promote(0)
    promotions.promote(1)
    for fetched in (tmp_path / "bundles").glob(f"{promotions.make_bundle(0).digest[:16]}/weights-0.safetensors"):
        fetched.write_bytes(b"")
    with pytest.raises(BundleError):
        rollback(promotions.registry, promotions.log)
    assert promotions.registry.champion().version == "2"
    assert len(promotions.changes) == 2


@pytest.mark.parametrize("change", ["alias moved", "alias removed"])
def test_alias_changed_outside_the_gate_is_detected(
    promotions: Promotions, client: MlflowClient, tmp_path: Path, change: str
) -> None:
    promotions.promote(0)
    promotions.promote(1)
    name = f"model-{tmp_path.name}"
    if change == "alias removed":
        client.delete_registered_model_alias(name, "champion")
    else:
        client.set_registered_model_alias(name, "champion", "1")
    with pytest.raises(InputError, match="outside the gate") as caught:
        promotions.promote(2)
    assert caught.value.fields["expected"].startswith("version 2, bundle ")
    with pytest.raises(InputError, match="outside the gate"):
        rollback(promotions.registry, promotions.log)
    assert len(promotions.changes) == 2
    client.set_registered_model_alias(name, "champion", "2")
    assert promotions.promote(2) == "3"


def test_champion_without_a_decision_is_detected(promotions: Promotions) -> None:
    version = promotions.registry.register(promotions.make_bundle(0), promotions.run_id)
    promotions.registry.point_champion(version.version)
    with pytest.raises(InputError, match="outside the gate") as caught:
        promotions.promote(1)
    assert caught.value.fields["expected"] == "no champion"


def test_truncated_decision_is_ignored(promotions: Promotions, tmp_path: Path) -> None:
    promotions.promote(0)
    with (tmp_path / "log" / "decisions.jsonl").open("a") as file:
        file.write('{"kind": "promo')
    assert promotions.promote(1) == "2"
    assert promotions.changes == [("promoted", None, "1"), ("promoted", "1", "2")]


_PROMOTER = """
import json, pathlib, sys, time
from gtvray.config import PromotionConfig
from gtvray.evaluation import CaseScore
from gtvray.models import Bundle
from gtvray.promotion import DecisionLog, Evidence, promote
from gtvray.registry import Registry
from gtvray.tracking import connect_mlflow
job = json.loads(sys.argv[1])
folder = pathlib.Path(job["folder"])
registry = Registry(connect_mlflow(job["uri"], folder), job["name"], folder / "bundles")
bundle, log = Bundle.load(pathlib.Path(job["bundle"])), DecisionLog(folder / "decisions.jsonl")
rest = [5., 2., .5, .6, .9, 1., 9., 9., 100., 1, 0, 0, False]
good, bad = (tuple(CaseScore(str(n), (1., 1., 3.), dsc, *rest) for n in range(3)) for dsc in (.8, .1))
evidence = Evidence(bundle.digest, "d", good, bad, True, 1)
(folder / f"ready-{bundle.folder.name}").touch()
while len(list(folder.glob("ready-*"))) < 2: time.sleep(0.01)
for _ in range(3):
    promote(bundle, job["run_id"], evidence, config=PromotionConfig(), registry=registry, log=log)
"""


def test_concurrent_promotions_of_two_processes_are_serialised(
    client: MlflowClient, make_bundle: Callable[[int], Bundle], run_id: str, tmp_path: Path
) -> None:
    name = f"model-{tmp_path.name}"
    started = []
    for number in range(2):
        job = {"uri": client.tracking_uri, "name": name, "run_id": run_id, "folder": str(tmp_path),
               "bundle": str(make_bundle(number).folder)}  # fmt: skip
        command = [sys.executable, "-c", _PROMOTER, json.dumps(job)]
        started.append(subprocess.Popen(command, stderr=subprocess.PIPE, text=True))
    try:
        for process in started:
            assert process.wait(90) == 0, process.communicate()[1]
    finally:
        for process in started:
            process.kill()
            process.communicate()
    registry = Registry(client, name, tmp_path / "bundles")
    decisions = DecisionLog(tmp_path / "decisions.jsonl").decisions()
    assert len(decisions) == 6
    assert len(registry.versions()) == 2
    assert registry.champion().version == decisions[-1].version
    for before, after in itertools.pairwise(decisions):
        # Either the champion replaced the one before, or it was promoted again.
        assert after.previous == (before.previous if after.version == before.version else before.version)
