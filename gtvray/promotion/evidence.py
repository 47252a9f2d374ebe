"""Evidence for the gate: scores of candidate and baseline on held-out cases, and the output of a fresh process.

`python -m gtvray.promotion.evidence BUNDLE THREADS` is that process: it prints a digest of the bundle's output.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

from gtvray.data import Project
from gtvray.datasets import Ledger, read_label
from gtvray.evaluation import MeanPositionBaseline, ScoredCase, check_masks, score_cases, write_golden
from gtvray.inference import Predictor
from gtvray.io import read_volume
from gtvray.models import Bundle
from gtvray.promotion.gate import Evidence

_TIMEOUT_S = 110


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
    """Score a bundle on the held-out cases; the ledger counts the scoring.

    Args:
        bundle: the candidate.
        project: the data it was trained on.
        masks: folder for the predicted masks.
        ledger: counts the models scored on held-out cases.
        threads: CPU threads, as many as a serving replica has.
        golden: folder for golden cases, which are cut from the held-out cases.
        report: called with (done, all) after each case.

    Raises:
        InputError: the masks' folder holds other files than earlier masks; nothing is scored or counted then.
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
        loads_fresh=reproduces_in_fresh_process(bundle, threads),
        looks=looks,
    )
    return evidence, scored


def reproduces_in_fresh_process(bundle: Bundle, threads: int) -> bool:
    """Check that a fresh process loads the bundle and computes bit-identical logits for a fixed patch."""
    command = [sys.executable, "-m", "gtvray.promotion.evidence", str(bundle.folder), str(threads)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=True)
        output = json.loads(done.stdout.splitlines()[-1])
    except (subprocess.SubprocessError, json.JSONDecodeError, IndexError):
        return False
    return bool(output == _output_digest(bundle.folder, threads))


def _output_digest(folder: Path, threads: int) -> dict[str, str]:
    """Load a bundle and return its digest and the sha256 of its logits for a patch of fixed noise."""
    predictor = Predictor(Bundle.load(folder), threads=threads)
    channels = predictor.bundle.preprocessing.channels
    patch = np.random.default_rng(0).random((channels, *predictor.bundle.patch_ijk), dtype=np.float32)
    logits = predictor.forward([patch])
    return {"digest": predictor.bundle.digest, "logits": hashlib.sha256(logits.tobytes()).hexdigest()}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(_output_digest(Path(sys.argv[1]), int(sys.argv[2]))) + "\n")
