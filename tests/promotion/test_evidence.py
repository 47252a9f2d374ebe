"""Evidence for the gate: held-out cases only, checked in a fresh process, every scoring counted by the ledger."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from gtvray.config import Config, PromotionConfig, with_dotted
from gtvray.data import open_project
from gtvray.datasets import Ledger, index_dataset
from gtvray.models import Bundle
from gtvray.promotion import gather_evidence, judge, reproduces_in_fresh_process


def test_fresh_process_does_not_reproduce_a_changed_bundle(make_bundle: Callable[[int], Bundle]) -> None:
    bundle = make_bundle(0)
    weights = bundle.folder / "weights-0.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    assert not reproduces_in_fresh_process(bundle, threads=1)


def test_evidence_covers_held_out_cases_and_every_scoring_is_counted(
    phantoms: Path, make_bundle: Callable[[int], Bundle], tmp_path: Path
) -> None:
    bundle = make_bundle(0)
    config = with_dotted(Config(preprocessing=bundle.preprocessing), {"split.held_out_share": 0.25})
    project = open_project(index_dataset(phantoms), config, cache=tmp_path / "cache", splits=tmp_path / "splits")
    ledger = Ledger(tmp_path / "ledger.jsonl")
    digest = project.fingerprint.digest
    ledger.record("promotion", "an earlier model", project.split.held_out, digest)
    reported: list[tuple[int, int]] = []
    evidence, scored = gather_evidence(
        bundle, project, masks=tmp_path / "masks", ledger=ledger, threads=1, report=lambda *at: reported.append(at)
    )
    assert (evidence.digest, evidence.data, evidence.looks, evidence.loads_fresh) == (bundle.digest, digest, 2, True)
    held_out = list(project.split.held_out)
    assert [score.case_id for score in evidence.candidate] == [score.case_id for score in evidence.baseline] == held_out
    assert [entry.mask.is_file() for entry in scored] == [True] * len(held_out)
    assert reported == [(n, len(held_out)) for n in range(1, len(held_out) + 1)]
    looks = ledger.looks()
    assert (looks[-1]["subject"], looks[-1]["cases"]) == (bundle.digest, sorted(held_out))
    judgement = judge(evidence, PromotionConfig())
    assert not judgement.accepted, "random weights do not beat the mean position"
    assert ledger.record("promotion", bundle.digest, project.split.held_out, digest) == 2, "a model counts once"
