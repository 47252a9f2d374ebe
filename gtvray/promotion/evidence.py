"""Gathering what the gate looks at: candidate and baseline on the held-out cases, and a fresh process's answer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from gtvray.data import Project
from gtvray.datasets import Ledger, read_label
from gtvray.evaluation import MeanPositionBaseline, ScoredCase, check_masks, score_cases, write_golden
from gtvray.inference import Predictor
from gtvray.io import read_volume
from gtvray.models import Bundle
from gtvray.promotion.gate import Evidence
from gtvray.promotion.probe import answers_alike


def gather_evidence(
    bundle: Bundle,
    project: Project,
    *,
    masks: Path,
    ledger: Ledger,
    threads: int,
    golden: Path | None = None,
    report: Callable[[int, int], None] | None = None,
) -> tuple[Evidence, list[ScoredCase]]:
    """Score a bundle on the held-out cases, and write the look into the ledger.

    Args:
        bundle: the candidate.
        project: the data it was trained on.
        masks: folder for the predicted masks.
        ledger: of looks.
        threads: CPU threads, as many as a serving replica has.
        golden: folder for golden cases made of these.
        report: told (done, all) after each case.

    Raises:
        InputError: something else than earlier masks is where the masks go; no look is recorded then.
    """
    check_masks(project.held_out, [masks], closed=[bundle.folder])
    digest = project.fingerprint.digest
    scans = [case.image for case in project.held_out]
    looks = ledger.record("promotion", bundle.digest, project.split.held_out, digest, scans)
    trained_on = project.dataset.subset(project.split.train)
    baseline = MeanPositionBaseline.fit(read_label(case, read_volume(case.image)) for case in trained_on)
    predictor = Predictor(bundle, threads=threads)
    predictor.warm()
    scored = score_cases(predictor, project.held_out, masks, baseline, report)
    if golden is not None:
        write_golden(golden, predictor, scored, threads)
    evidence = Evidence(
        digest=bundle.digest,
        data=digest,
        candidate=tuple(entry.score for entry in scored),
        baseline=tuple(entry.baseline for entry in scored if entry.baseline is not None),
        loads_fresh=answers_alike(bundle, threads),
        looks=looks,
    )
    return evidence, scored
