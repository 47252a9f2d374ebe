"""Evidence for the gate: scores of candidate, champion and baseline on held-out cases, and a run in a fresh process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gtvray.data import Project
from gtvray.datasets import read_label
from gtvray.errors import InputError
from gtvray.evaluation import MeanPositionBaseline, ScoredCase, check_masks, score_cases, write_golden
from gtvray.failpoints import failpoint
from gtvray.inference import Predictor
from gtvray.io import read_volume
from gtvray.models import Bundle
from gtvray.promotion.fresh import TIMEOUT_S, run_fresh
from gtvray.promotion.gate import Evidence
from gtvray.promotion.looks import Looks, cases_digest


@dataclass(frozen=True)
class Gathered:
    """Evidence with the scored cases behind it.

    Attributes:
        evidence: the input of the gate.
        candidate: held-out cases with the candidate's scores and masks.
        champion: the same of the champion; empty if there is none.
    """

    evidence: Evidence
    candidate: list[ScoredCase]
    champion: list[ScoredCase]


def gather_evidence(
    bundle: Bundle,
    project: Project,
    *,
    masks: Path,
    looks: Looks,
    threads: int,
    champion: Bundle | None = None,
    golden: Path | None = None,
    gpus: float = 0.0,
    report: Callable[[int, int], None] | None = None,
) -> Gathered:
    """Score a bundle on the held-out cases, after its look was recorded.

    Args:
        bundle: the candidate.
        project: the data it was trained on.
        masks: folder for the predicted masks; those of the champion go to `champion` in it.
        looks: records the look and counts the models scored on held-out cases.
        threads: CPU threads, as many as a serving replica has.
        champion: the promoted bundle, scored on the same cases.
        golden: folder for golden cases, which are cut from the held-out cases.
        gpus: GPUs of a serving replica. If there are any, time and memory are measured on a GPU, or not at all if this
            host has none.
        report: called with (done, all) after each case.

    Raises:
        InputError: a model was trained or selected on a held-out case, or the masks' folder holds files other than
            earlier masks. Nothing is scored or counted in that case.
    """
    require_untouched(bundle, champion, project)
    cases, of_champion = project.held_out, masks / "champion"
    folders = [masks] if champion is None else [masks, of_champion]
    check_masks(cases, folders, closed=[bundle.folder])
    digest = project.fingerprint.digest
    look = looks.begin(bundle.digest)
    trained_on = project.dataset.subset(project.split.train)
    baseline = MeanPositionBaseline.fit(read_label(case, read_volume(case.image)) for case in trained_on)
    total = len(cases) * len(folders)
    report = report or (lambda _done, _all: None)
    predictor = Predictor(bundle, threads=threads)
    predictor.warm()
    scored = score_cases(predictor, cases, masks, baseline, lambda done, _: report(done, total))
    if golden is not None:
        write_golden(golden, predictor, scored, threads)
    del predictor
    reference: list[ScoredCase] = []
    if champion is not None:
        other = Predictor(champion, threads=threads)
        other.warm()
        reference = score_cases(other, cases, of_champion, None, lambda done, _: report(len(cases) + done, total))
    failpoint("promotion.scored")
    timing = _timing([*scored, *reference], [case.image for case in cases], gpus)
    fresh = run_fresh(bundle, threads, golden=golden, **timing)
    other_run = None if champion is None else run_fresh(champion, threads, **timing)
    evidence = Evidence(
        digest=bundle.digest,
        data=digest,
        candidate=tuple(entry.score for entry in scored),
        baseline=tuple(entry.baseline for entry in scored if entry.baseline is not None),
        loads_fresh=fresh.same,
        looks=look.number,
        undecided_looks=look.undecided,
        look=look.run_id,
        cases=cases_digest(project),
        champion_digest=champion.digest if champion is not None else "",
        champion=tuple(entry.score for entry in reference),
        golden=fresh.golden,
        cost=fresh.cost,
        champion_cost=None if other_run is None else other_run.cost,
    )
    return Gathered(evidence, scored, reference)


def _timing(scored: Sequence[ScoredCase], scans: Sequence[Path], gpus: float) -> dict[str, Any]:
    """Return the arguments with which a fresh process measures time and memory, on the largest scan."""
    largest = max(scans, key=lambda scan: scan.stat().st_size)
    timeout_s = TIMEOUT_S + sum(entry.milliseconds for entry in scored) / 100
    device = "cuda" if gpus else "cpu"
    measured = largest if device == "cpu" or torch.cuda.is_available() else None
    return {"scan": measured, "device": device, "timeout_s": timeout_s}


def require_untouched(candidate: Bundle, champion: Bundle | None, project: Project) -> None:
    """Reject held-out cases that a model was trained or selected on.

    Args:
        candidate: the candidate.
        champion: the champion, if there is one.
        project: the data with the held-out cases.

    Raises:
        InputError: a model was trained or selected on a held-out case, or its training cases are unknown.
    """
    held_out = {project.scans[case_id]: case_id for case_id in project.split.held_out}
    judged = {"candidate": candidate} | ({} if champion is None else {"champion": champion})
    for name, bundle in judged.items():
        for model in (bundle, *([bundle.locator] if bundle.locator else [])):
            trained_on = model.info.get("training_data", {})
            scans = trained_on.get("scans")
            same_data = trained_on.get("digest") == project.fingerprint.digest
            if scans is None and same_data and _split_of(model) == _split_of(candidate):
                # Bundles of earlier versions do not list their scans.
                continue
            known = sorted(held_out[scan] for scan in scans or () if scan in held_out)
            if known or scans is None:
                raise InputError(
                    f"the {name} cannot be evaluated on these held-out cases",
                    expected="cases that were used neither for its training nor for its selection",
                    found=f"{len(known)} of {len(held_out)} were: {', '.join(known[:5])}"
                    if known
                    else "a model whose training cases are not recorded",
                    do="train the candidate with the champion's split (`split.*`), or on data with new held-out cases",
                )


def _split_of(bundle: Bundle) -> dict[str, Any]:
    return {key: value for key, value in bundle.info.get("config", {}).items() if key.startswith("split.")}
