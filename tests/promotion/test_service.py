"""Promotion and rollback: only through the gate, recorded in MLflow, safe against changes outside and crashes."""

from __future__ import annotations

import itertools
import json
import shutil
import time
from pathlib import Path

import pytest

from gtvray.errors import BundleError, GateRefusedError, InputError, NotReadyError
from gtvray.failpoints import arm
from gtvray.promotion import Request, code_commit, require_champion
from gtvray.registry import DecisionLog, Registry

from .conftest import Promotions


def test_first_and_second_promotion(promotions: Promotions, tmp_path: Path) -> None:
    assert promotions.promote(0) == "1" == promotions.champion
    assert promotions.promote(1) == "2" == promotions.champion
    assert promotions.changes == [("promoted", None, "1"), ("promoted", "1", "2")]
    first = promotions.log.decisions()[0]
    assert (first.digest, first.by, first.state, first.cases) == (
        promotions.bundle(0).digest,
        "Ada",
        "completed",
        "cases-1",
    )
    assert first.at.endswith("+00:00")
    record = json.loads(promotions.log.download_record(first, tmp_path / "downloaded").read_text())
    assert record["evidence"]["candidate"][0]["dsc"] == 0.8
    assert record["judgement"]["difference"]["n"] == 3
    assert record["schema"] == 1
    assert (record["number"], record["at"]) == (first.number, first.at)
    page = (tmp_path / "downloaded" / "decision.md").read_text()
    for words in (f"| date | {first.at} |", f"| number | {first.number} |", "| by | Ada |", "| version | 1 |"):
        assert words in page
    assert "**The candidate is promoted. Mean DSC of the candidate minus that of the baseline: +0.600 (95 % " in page
    tags = promotions.client.get_model_version(promotions.name, "1").tags
    assert tags["gtvray.rule"] == "baseline"
    assert tags["gtvray.licence"] == promotions.registry.champion().licence == "not stated"
    assert tags["gtvray.commit"] == record["commit"] == code_commit()


def test_changed_record_is_detected(promotions: Promotions, tmp_path: Path) -> None:
    promotions.promote(0)
    decision = promotions.log.decisions()[0]
    changed = tmp_path / "decision.json"
    changed.write_text("{}")
    promotions.client.log_artifact(decision.run_id, str(changed))
    with pytest.raises(Exception, match="record of this decision cannot be used"):
        promotions.log.download_record(decision, tmp_path / "downloaded")


def test_refusal_is_recorded_and_keeps_the_champion(promotions: Promotions, tmp_path: Path) -> None:
    promotions.promote(0)
    evidence = promotions.evidence(1, candidate=(0.1, 0.1, 0.0), champion=(0.2, 0.2, 0.3), loads_fresh=False)
    with pytest.raises(GateRefusedError) as caught:
        promotions.promote(1, evidence)
    assert "must exceed" in caught.value.fields["found"]
    assert "fresh process" in caught.value.fields["found"]
    assert [version.version for version in promotions.registry.versions()] == ["1"]
    assert promotions.champion == "1"
    refused = promotions.log.decisions()[-1]
    digest = promotions.bundle(1).digest
    assert (refused.kind, refused.digest, refused.version, refused.previous) == ("refused", digest, None, "1")
    page = (tmp_path / "decisions" / f"{refused.number:04d}-refused" / "decision.md").read_text()
    assert page.startswith(f"# Refused: model {digest[:12]}")
    assert "missed" in page
    assert (
        "**The candidate is refused; the champion is unchanged. Mean DSC of the candidate minus that of the ch" in page
    )
    assert promotions.promote(2) == "2", "a refusal does not block later promotions"


def test_named_person_can_override_the_gate_but_not_its_integrity_checks(
    promotions: Promotions, tmp_path: Path
) -> None:
    promotions.promote(0)
    worse, request = {"candidate": (0.3, 0.2, 0.25)}, Request("Ada", override="needed for a study")
    broken = promotions.evidence(1, **worse, loads_fresh=False)
    with pytest.raises(GateRefusedError):
        promotions.promote(1, broken, request)
    assert promotions.promote(1, promotions.evidence(1, **worse), request) == "2"
    decision = promotions.log.decisions()[-1]
    assert (decision.kind, decision.by, decision.reason) == ("promoted", "Ada", "needed for a study")
    assert promotions.client.get_model_version(promotions.name, "2").tags["gtvray.overridden"] == "true"
    assert promotions.registry.champion().override == "needed for a study"
    assert promotions.registry.get("1").override == ""
    page = tmp_path / "decisions" / f"{decision.number:04d}-promoted" / "decision.md"
    assert "Ada promoted it anyway; reason: needed for a study" in page.read_text()


def test_evidence_of_another_bundle_is_refused(promotions: Promotions) -> None:
    with pytest.raises(InputError, match="belongs to another bundle"):
        promotions.promote(0, promotions.evidence(1))
    assert promotions.log.decisions() == []
    assert promotions.registry.versions() == []


def test_evidence_against_an_earlier_champion_is_refused(promotions: Promotions) -> None:
    """Two candidates were scored at the same time: the second one was never compared with the first."""
    early = promotions.evidence(1)
    promotions.promote(0)
    with pytest.raises(InputError, match="champion has changed since"):
        promotions.promote(1, early)
    assert promotions.champion == "1"
    assert promotions.promote(1) == "2"


def test_bundle_changed_since_it_was_scored_is_refused(promotions: Promotions) -> None:
    evidence, bundle = promotions.evidence(0), promotions.bundle(0)
    weights = bundle.folder / "weights-0.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(bytes(content))
    with pytest.raises(BundleError):
        promotions.promote(0, evidence)
    shutil.rmtree(bundle.folder)
    shutil.copytree(promotions.bundle(1).folder, bundle.folder)
    with pytest.raises(InputError):
        promotions.promote(0, evidence)
    assert promotions.registry.versions() == []


def test_repeated_rollback_leads_down_the_history(promotions: Promotions) -> None:
    with pytest.raises(NotReadyError, match="no previous champion"):
        promotions.rollback()
    for seed in range(3):
        promotions.promote(seed)
    for expected in ("2", "1"):
        assert promotions.rollback() == expected == promotions.champion
    with pytest.raises(NotReadyError, match="no previous champion"):
        promotions.rollback()
    assert promotions.changes[3:] == [("rolled_back", "3", "2"), ("rolled_back", "2", "1")]
    assert promotions.promote(3) == "4"
    assert promotions.rollback() == "1", "versions that were rolled back are not in the history"


def test_clock_that_is_set_back_changes_no_order(
    promotions: Promotions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every call of the clock is a minute before the one before, in MLflow as well."""
    promotions.promote(0)
    times = (1_700_000_000.0 - 60 * number for number in itertools.count())
    monkeypatch.setattr(time, "time", lambda: next(times))
    assert promotions.promote(1) == "2" == promotions.champion
    assert promotions.promote(2) == "3" == promotions.champion
    assert promotions.rollback() == "2"
    assert promotions.rollback() == "1"
    monkeypatch.undo()
    assert promotions.changes == [
        ("promoted", None, "1"),
        ("promoted", "1", "2"),
        ("promoted", "2", "3"),
        ("rolled_back", "3", "2"),
        ("rolled_back", "2", "1"),
    ]
    other = DecisionLog(promotions.client, promotions.name, tmp_path / "other", "Eve")
    assert require_champion(promotions.registry, other) == promotions.registry.champion()


def test_promoting_the_champion_again_keeps_its_predecessor(promotions: Promotions) -> None:
    promotions.promote(0)
    assert promotions.promote(1) == promotions.promote(1) == "2"
    assert promotions.rollback() == "1"


def test_former_champion_can_be_promoted_again(promotions: Promotions) -> None:
    for seed, version in ((0, "1"), (1, "2"), (0, "1")):
        assert promotions.promote(seed) == version
    assert promotions.changes[-1] == ("promoted", "2", "1")
    assert promotions.rollback() == "2"
    assert promotions.rollback() == "1"


def test_rollback_to_a_damaged_bundle_keeps_the_champion(promotions: Promotions, tmp_path: Path) -> None:
    promotions.promote(0)
    promotions.promote(1)
    for fetched in (tmp_path / "bundles").glob(f"{promotions.bundle(0).digest[:16]}/weights-0.safetensors"):
        fetched.write_bytes(b"")
    with pytest.raises(BundleError):
        promotions.rollback()
    assert promotions.champion == "2"
    assert len(promotions.changes) == 2


@pytest.mark.parametrize("change", ["alias moved", "alias removed"])
def test_alias_changed_outside_the_gate_is_detected(promotions: Promotions, change: str) -> None:
    promotions.promote(0)
    promotions.promote(1)
    if change == "alias removed":
        promotions.client.delete_registered_model_alias(promotions.name, "champion")
    else:
        promotions.client.set_registered_model_alias(promotions.name, "champion", "1")
    with pytest.raises(InputError, match="outside the gate") as caught:
        promotions.promote(2)
    assert caught.value.fields["expected"].startswith("version 2, bundle ")
    with pytest.raises(InputError, match="outside the gate"):
        promotions.rollback()
    assert len(promotions.changes) == 2
    promotions.client.set_registered_model_alias(promotions.name, "champion", "2")
    assert promotions.promote(2) == "3"


def test_champion_without_a_decision_is_detected_and_can_be_adopted(promotions: Promotions) -> None:
    version = promotions.registry.register(promotions.bundle(0), promotions.run_id)
    promotions.registry.point_champion(version.version)
    error = promotions.refused()
    assert error.fields["expected"] == "no champion"
    assert "gtvray models adopt 1" in error.fields["do"]
    with pytest.raises(InputError, match="not the champion"):
        promotions.adopt("2", "validated elsewhere")
    adopted = promotions.adopt("1", "validated elsewhere")
    assert (adopted.version, adopted.override) == ("1", "adopted by Ada: validated elsewhere")
    assert promotions.registry.champion().override == adopted.override, "endpoints show it as gate_override"
    decision = promotions.log.current()
    assert decision is not None
    assert (decision.kind, decision.by, decision.reason) == ("adopted", "Ada", "validated elsewhere")
    assert promotions.promote(1) == "2"
    assert promotions.rollback() == "1"


def test_changes_without_evidence_have_records(promotions: Promotions, tmp_path: Path) -> None:
    promotions.promote(0)
    promotions.promote(1)
    promotions.rollback()
    promotions.client.set_registered_model_alias(promotions.name, "champion", "2")
    promotions.restore()
    promotions.client.set_registered_model_alias(promotions.name, "champion", "2")
    promotions.adopt("2", "validated elsewhere")
    expected = {
        "rolled_back": ("2", "1", ""),
        "restored": ("2", "1", "restored version 1 after a change outside the gate"),
        "adopted": ("1", "2", "validated elsewhere"),
    }
    for decision in promotions.log.decisions()[2:]:
        file = promotions.log.download_record(decision, tmp_path / decision.kind)
        local = tmp_path / "decisions" / f"{decision.number:04d}-{decision.kind}"
        assert file.read_bytes() == (local / "decision.json").read_bytes()
        record = json.loads(file.read_text())
        assert tuple(record[name] for name in ("previous", "version", "reason")) == expected[decision.kind]
        assert (record["schema"], record["by"], record["evidence"]) == (1, "Ada", None)
        assert (record["number"], record["at"], record["digest"]) == (decision.number, decision.at, decision.digest)
        page = file.with_name("decision.md").read_text()
        for words in (
            f"| date | {decision.at} |",
            "| by | Ada |",
            f"| champion before | version {decision.previous} |",
        ):
            assert words in page
        assert record["reason"] in page


def test_rollback_does_not_depend_on_the_artifact_store(
    promotions: Promotions, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A workspace with the bundle can leave a bad champion while the store is away."""
    promotions.promote(0)
    promotions.promote(1)

    def fail(*_: object) -> None:
        raise OSError("the store does not answer")

    with monkeypatch.context() as patch:
        patch.setattr(promotions.client, "log_artifacts", fail)
        assert promotions.rollback() == "1" == promotions.champion
    decision = promotions.log.decisions()[-1]
    assert (decision.kind, decision.state, decision.evidence) == ("rolled_back", "completed", "")
    assert (tmp_path / "decisions" / f"{decision.number:04d}-rolled_back" / "decision.md").is_file()


@pytest.mark.parametrize(("uploaded", "state"), [(False, "interrupted"), (True, "completed")])
def test_refusal_that_was_interrupted_is_complete_only_with_its_record(
    promotions: Promotions, monkeypatch: pytest.MonkeyPatch, uploaded: bool, state: str
) -> None:
    worse = promotions.evidence(1, candidate=(0.1, 0.1, 0.1))

    def fail(*_: object) -> None:
        raise RuntimeError("failpoint")

    with monkeypatch.context() as patch:
        if uploaded:
            patch.setattr(DecisionLog, "settle", fail)
        else:
            arm("decision.recorded=raise")
        try:
            with pytest.raises(RuntimeError, match="failpoint"):
                promotions.promote(1, worse)
        finally:
            arm("")
    assert promotions.promote(0) == "1"
    assert [decision.state for decision in promotions.log.decisions()] == [state, "completed"]


def test_second_workspace_sees_the_same_champion_and_history(promotions: Promotions, tmp_path: Path) -> None:
    promotions.promote(0)
    promotions.promote(1)
    other = Promotions(promotions.client, tmp_path, promotions.run_id, promotions.make_evidence)
    other.registry = Registry(promotions.client, promotions.name, tmp_path / "second" / "bundles")
    assert require_champion(other.registry, other.log) == promotions.registry.champion()
    assert other.promote(2) == "3"
    assert promotions.rollback() == "2"
    assert other.rollback() == "1"


def test_decision_whose_run_was_deleted_still_counts(promotions: Promotions) -> None:
    promotions.promote(0)
    promotions.promote(1)
    for decision in promotions.log.decisions():
        promotions.client.delete_run(decision.run_id)
    assert promotions.promote(2) == "3"
    assert promotions.rollback() == "2"
