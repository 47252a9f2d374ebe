"""Evidence for the gate: held-out cases only, checked in a fresh process, every scoring counted by the ledger."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlflow.tracking import MlflowClient

from gtvray import failpoints
from gtvray.config import Config, PreprocessingConfig, PromotionConfig, with_dotted
from gtvray.data import Project, open_project
from gtvray.datasets import Ledger, index_dataset
from gtvray.errors import GateRefusedError, InputError
from gtvray.io import sha256_of
from gtvray.models import Bundle
from gtvray.promotion import Cost, Evidence, FreshRun, Looks, gather_evidence, judge, require_untouched, run_fresh
from gtvray.registry import DecisionLog
from gtvray.runtime import processor_name

from ..bundles import random_bundle
from .conftest import Promotions


def test_fresh_process_does_not_reproduce_a_changed_bundle(make_bundle: Callable[[int], Bundle]) -> None:
    bundle = make_bundle(0)
    weights = bundle.folder / "weights-0.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    assert not run_fresh(bundle, threads=1).same


@pytest.fixture
def project(phantoms: Path, tmp_path: Path) -> Project:
    preprocessing = PreprocessingConfig(spacing_mm=(4.0, 4.0, 4.0))
    config = with_dotted(Config(preprocessing=preprocessing), {"split.held_out_share": 0.25})
    return open_project(index_dataset(phantoms), config, cache=tmp_path / "cache", splits=tmp_path / "splits")


def _bundle(tmp_path: Path, seed: int, project: Project, **changes: Any) -> Bundle:
    info = {"training_data": {**project.provenance(), **changes}, "config": {"split.seed": 0}}
    return random_bundle(tmp_path / f"bundle-{seed}-{len(changes)}", seed, info)


def _looks(client: MlflowClient, root: Path, project: Project) -> Looks:
    """Looks of a workspace; the name of the model is that of the test's folder."""
    log = DecisionLog(client, f"model-{root.parent.name}", root / "mlartifacts", "Ada")
    return Looks(Ledger(root / "ledger.jsonl"), log, project, 0.05)


def test_evidence_covers_held_out_cases_and_every_scoring_is_counted(
    client: MlflowClient, project: Project, tmp_path: Path
) -> None:
    bundle, champion = _bundle(tmp_path, 0, project), _bundle(tmp_path, 1, project)
    looks, ledger = _looks(client, tmp_path / "here", project), Ledger(tmp_path / "here" / "ledger.jsonl")
    digest = project.fingerprint.digest
    ledger.record("evaluation", "an earlier model", project.split.held_out, digest)
    for seen in ("a model of another workspace", "an earlier model"):
        _looks(client, tmp_path / "there", project).begin(seen)
    reported: list[tuple[int, int]] = []
    gathered = gather_evidence(
        bundle,
        project,
        masks=tmp_path / "masks",
        looks=looks,
        threads=1,
        champion=champion,
        golden=tmp_path / "golden",
        report=lambda *at: reported.append(at),
    )
    evidence = gathered.evidence
    assert (evidence.digest, evidence.data, evidence.looks, evidence.loads_fresh) == (bundle.digest, digest, 3, True)
    assert (evidence.golden, evidence.champion_digest) == (True, champion.digest)
    held_out = list(project.split.held_out)
    for scores in (evidence.candidate, evidence.baseline, evidence.champion):
        assert [score.case_id for score in scores] == held_out
    assert [entry.mask.is_file() for entry in (*gathered.candidate, *gathered.champion)] == [True] * 2 * len(held_out)
    assert reported == [(n, 2 * len(held_out)) for n in range(1, 2 * len(held_out) + 1)]
    for cost in (evidence.cost, evidence.champion_cost):
        assert cost is not None
        assert cost.seconds > 0
        assert 100 < cost.peak_mb < 5000
        assert cost.host == f"{processor_name()}, 1 threads"
    assert evidence.undecided_looks == 2
    recorded = ledger.looks()
    assert (recorded[-1]["subject"], recorded[-1]["cases"]) == (bundle.digest, sorted(held_out))
    judgement = judge(evidence, PromotionConfig())
    assert not judgement.accepted, "random weights do not beat the mean position"
    assert ledger.record("promotion", bundle.digest, project.split.held_out, digest) == 2, "a model counts once"


class _Killed(BaseException):
    """Ends a promotion as SIGKILL does: no handler of the code under test acts on it."""


def test_look_of_a_workspace_that_died_before_its_decision_counts_for_all(
    promotions: Promotions, project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two workspaces on one MLflow. The first has scored its candidate when its process ends."""

    def gather(root: Path, seed: int) -> Evidence:
        looks = Looks(Ledger(root / "ledger.jsonl"), promotions.log, project, 0.05)
        bundle = promotions.bundle(seed)
        return gather_evidence(bundle, project, masks=root / "masks", looks=looks, threads=1).evidence

    def die(text: str) -> bool:
        raise _Killed(text)

    info = {"training_data": project.provenance(), "mlflow_run": promotions.run_id, "config": {"split.seed": 0}}
    for seed in range(3):
        random_bundle(tmp_path / f"made-{seed}", seed, info)
    monkeypatch.setitem(failpoints._ACTIONS, "kill", die)
    monkeypatch.setattr("gtvray.promotion.evidence.run_fresh", lambda *_args, **_named: FreshRun(True))
    monkeypatch.setattr("gtvray.promotion.evidence.score_cases", lambda *_: [])
    for _ in range(2):
        failpoints.arm("promotion.scored=kill")
        with pytest.raises(_Killed):
            gather(tmp_path / "first", 2)
    died = promotions.log.looks.looks()
    assert [(look.state, look.number, look.level) for look in died] == [("begun", 1, 0.95)] * 2
    assert died[0].scans == {sha256_of(case.image) for case in project.held_out}
    assert promotions.log.decisions() == []
    second = gather(tmp_path / "second", 0)
    assert (second.looks, second.undecided_looks) == (2, 1), "the model that died counts once"
    assert promotions.promote(0, promotions.evidence(0, looks=2, undecided_looks=1, look=second.look)) == "1"
    page = next((tmp_path / "decisions").glob("*-promoted")) / "decision.md"
    assert "| models scored on them | 2, this one included; 1 without a decision |" in page.read_text()
    last = promotions.log.looks.looks()[-1]
    assert (last.run_id, last.state, last.number) == (second.look, "completed", 2)
    assert last.level == pytest.approx(1 - 2 * 0.05 / 6)
    failpoints.arm("")
    again = gather(tmp_path / "second", 1)
    with pytest.raises(GateRefusedError):
        promotions.promote(1, promotions.evidence(1, candidate=(0.1, 0.1, 0.0), look=again.look))
    assert (again.looks, again.undecided_looks) == (3, 1), "a look and its decision count once"
    assert promotions.log.looks.looks()[-1].state == "completed"
    assert gather(tmp_path / "first", 2).looks == 3, "the model that died is scored again"


def test_replica_s_gpu_is_measured_or_stated_as_not_measured(
    client: MlflowClient, project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Time on a CPU says nothing about a replica that computes on a GPU."""
    calls: list[dict[str, Any]] = []

    def fresh(bundle: Bundle, threads: int, **job: Any) -> FreshRun:
        calls.append(job)
        return FreshRun(True, cost=None if job["scan"] is None else Cost(1.0, 900.0, job["device"]))

    monkeypatch.setattr("gtvray.promotion.evidence.run_fresh", fresh)
    monkeypatch.setattr("gtvray.promotion.evidence.score_cases", lambda *_: [])
    for available, gpus, device in ((False, 0.5, None), (True, 0.5, "cuda"), (True, 0.0, "cpu")):
        monkeypatch.setattr("torch.cuda.is_available", lambda available=available: available)
        found = gather_evidence(
            _bundle(tmp_path, 0, project),
            project,
            masks=tmp_path / "masks",
            looks=_looks(client, tmp_path / "here", project),
            threads=1,
            gpus=gpus,
        ).evidence
        assert (found.cost and found.cost.host) == device
    assert [job["scan"] is None for job in calls] == [True, False, False]


def test_model_that_has_seen_a_held_out_case_is_not_judged_by_it(
    client: MlflowClient, project: Project, tmp_path: Path
) -> None:
    candidate = _bundle(tmp_path, 0, project)
    seen = sha256_of(project.held_out[0].image)
    looks = _looks(client, tmp_path / "here", project)
    for name, models in {
        "candidate": (_bundle(tmp_path, 0, project, scans=[seen]), None),
        "champion": (candidate, _bundle(tmp_path, 1, project, scans=[seen])),
    }.items():
        with pytest.raises(InputError, match=f"{name} cannot be evaluated") as caught:
            gather_evidence(models[0], project, masks=tmp_path, looks=looks, threads=1, champion=models[1])
        assert caught.value.fields["found"].endswith(f"were: {project.held_out[0].case_id}")
    assert looks.count("another model").number == 1, "nothing was scored"


def test_model_without_recorded_scans_needs_the_same_data_and_split(project: Project, tmp_path: Path) -> None:
    """Bundles of earlier versions have no list of scans."""
    candidate = _bundle(tmp_path, 0, project)
    require_untouched(candidate, _bundle(tmp_path, 1, project, scans=None), project)
    other = _bundle(tmp_path, 1, project, scans=None, digest="other data")
    with pytest.raises(InputError, match="champion cannot be evaluated") as caught:
        require_untouched(candidate, other, project)
    assert "not recorded" in caught.value.fields["found"]
