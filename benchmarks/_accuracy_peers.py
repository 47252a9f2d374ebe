"""Peers of the accuracy benchmark: stored tables, or runs that make them."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from _accuracy_contest import Cases, costs
from _accuracy_jobs import Job, digest_of, run_children, run_stage
from _accuracy_report import MEAN, NNUNET, Table, machine, record_look, stored_table, summary_of, table_file, versions

from gtvray.io import write_json

NNUNET_SCRIPT = Path(__file__).parent / "peers" / "accuracy_nnunet.py"


def mean_table(given: Namespace, data: Cases, val: Cases) -> Table:
    """The table of the mean position of the training masks."""
    asked = {"train": data.digest, "val": val.digest}
    stored = stored_table(table_file(given.results, MEAN), **asked)
    if stored is not None:
        return {**stored, "from": "file"}
    folder = given.work.resolve() / f"mean-{digest_of(asked)}"
    job = peer_job(given, data, val, folder, folder / "masks")
    made = run_stage("mean", job, folder / "mean.json")
    return peer_table(given, MEAN, job, {**asked, **made, "versions": versions()})


def nnunet_table(given: Namespace, data: Cases, val: Cases) -> Table | None:
    """The table of the reduced nnU-Net, stored or from a run; None without either."""
    asked: dict[str, Any] = {"train": data.digest, "val": val.digest, "steps_per_epoch": given.peer_steps}
    stored = stored_table(table_file(given.results, NNUNET), **asked)
    if stored is not None:
        return {**stored, "from": "file"}
    if given.nnunet_python is None:
        return None
    folder = given.work.resolve() / f"nnunet-{digest_of({'data': data.digest, 'steps': given.peer_steps})}"
    job = peer_job(given, data, val, folder, folder / f"judged-{val.digest[:8]}" / "masks")
    told = run_nnunet(given, job)
    if told is None:
        return None
    prepared, trained, predicted = (told.pop(stage) for stage in ("prepare", "train", "predict"))
    made = {**costs(prepared, trained, predicted), "steps": trained["steps"], **told}
    return peer_table(given, NNUNET, job, {**asked, **made})


def peer_job(given: Namespace, data: Cases, val: Cases, folder: Path, masks: Path) -> Job:
    """A job with all training cases and all evaluation cases."""
    return Job(
        data=str(data.folder),
        train=data.ids,
        judged=str(val.folder),
        cases=val.ids,
        threads=given.threads,
        folder=str(folder),
        masks=str(masks),
    )


def run_nnunet(given: Namespace, job: Job) -> dict[str, Any] | None:
    """Return the output of the nnU-Net process; None if it failed, which keeps its log and does not stop the others."""
    Path(job.masks).parent.mkdir(parents=True, exist_ok=True)
    log = Path(job.folder) / "log.txt"
    places = [job.data, job.judged, job.folder, job.masks]
    command = [str(given.nnunet_python), str(NNUNET_SCRIPT), *places, str(given.peer_steps)]
    sys.stderr.write(f"nnunet: {log}\n")
    with log.open("w") as said:
        [code] = run_children([command], 1, given.threads, said, nnUNet_compile="f", nnUNet_n_proc_DA="1")
    if code:
        sys.stderr.write(f"nnU-Net exited with code {code}\n")
        return None
    return dict(json.loads(log.read_text().splitlines()[-1]))


def peer_table(given: Namespace, name: str, job: Job, made: Mapping[str, Any]) -> Table:
    """Score the masks of a peer, record the look, and store the table."""
    scored = run_stage("score", job, Path(job.masks).parent / "score.json")
    table = {
        "contestant": name,
        "seed": None,
        "summary": summary_of(scored["cases"]),
        **made,
        "masks_sha256": scored["masks_sha256"],
        "machine": machine(given.threads),
        "cases": scored["cases"],
    }
    who = "reduced nnU-Net" if name == NNUNET else "mean position of the training masks"
    record_look(given.ledger, f"{who}, masks", "peer of the accuracy figure", scored["masks_sha256"], table["summary"])
    # Written after the look is recorded, because an existing table is reused without one.
    write_json(table_file(given.results, name), table)
    return {**table, "from": "run"}
