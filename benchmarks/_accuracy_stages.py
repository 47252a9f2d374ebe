"""Stages of the accuracy benchmark; `accuracy.py` runs each in its own process, imports not timed.

python _accuracy_stages.py STAGE JOB RESULT
"""

from __future__ import annotations

import hashlib
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _accuracy_jobs import Job

from gtvray.config import Config, build, flatten
from gtvray.data import CachedCase, CaseCache, dataset_digest
from gtvray.datasets import index_dataset, read_binary, read_label
from gtvray.evaluation import MeanPositionBaseline, score_case
from gtvray.inference import Predictor
from gtvray.io import read_json, read_volume, write_json, write_volume
from gtvray.models import Bundle, write_bundle
from gtvray.training import (
    TrainedNetwork,
    best_setting,
    domain_ranges,
    fit,
    kept_checkpoint,
    training_precision,
)

# This module is among the peers, which import it in their own environment.
sys.path.insert(0, str(Path(__file__).parent / "peers"))
from accuracy_clock import EpochClock, measured


def main() -> None:
    """Run one stage and write its result."""
    name, said, result = sys.argv[1:]
    job = Job(**read_json(Path(said)))
    stages = {
        "prepare": prepare,
        "train": train,
        "bundle": bundle,
        "predict": predict,
        "mean": mean_mask,
        "score": score,
    }
    write_json(Path(result), measured(stages[name], job))


def config_of(job: Job) -> Config:
    """The settings."""
    return build(Config, job.config, "job")


def prepare(job: Job) -> dict[str, Any]:
    """Prepare every case into a new cache; a partial cache would give too low a cost."""
    shutil.rmtree(job.cache, ignore_errors=True)
    cases = cached(job, workers=job.threads)
    size = sum(file.stat().st_size for case in cases.values() for file in case.folder.iterdir())
    return {"bytes": size, "tumour_ml": {name: float(case.meta["tumour_ml"]) for name, case in cases.items()}}


def cached(job: Job, workers: int = 2) -> dict[str, CachedCase]:
    """Return prepared cases by id."""
    config = config_of(job)
    cache = CaseCache(Path(job.cache), config.preprocessing, config.cache)
    found = cache.prepare_all(index_dataset(Path(job.data)).cases, workers=workers)
    return {case.case_id: case for case in found}


def train(job: Job) -> dict[str, Any]:
    """Train from the newest checkpoint to the end; time is summed over epochs, as without an interruption."""
    config, folder = config_of(job), Path(job.folder)
    clock = EpochClock(folder / "epochs.json")
    cases = cached(job)
    learned, selection = ([cases[name] for name in names] for names in (job.train, job.selection))
    last = None
    for last in fit(config, learned, selection, folder / "checkpoints"):
        clock.epoch(last.epoch, last.seconds)
        told = f"loss {last.train_loss:.3f}, selection DSC {last.selection_dsc:.3f}, best {last.best_dsc:.3f}"
        sys.stderr.write(f"epoch {last.epoch}/{last.epochs}: {told}, {last.seconds:.1f} s {last.notes}\n")
    assert last is not None
    return {
        **clock.total(),
        "seed": config.training.seed,
        "epochs": last.epoch,
        "steps": last.epoch * config.training.steps_per_epoch,
        "train_cases": len(learned),
        "selection_cases": len(selection),
        "selection_dsc": last.best_dsc,
        "retries": last.retries,
        # The default depends on the machine: bf16 where the processor supports it, which is several times as fast.
        "precision": str(training_precision(config)).removeprefix("torch."),
        # Only the name of a path, because the folders above it are specific to this machine.
        "best": Path(last.best_checkpoint).name,
    }


def bundle(job: Job) -> dict[str, Any]:
    """Write the networks as one bundle, calibrated on the output of each for its own selection cases."""
    config, cases = config_of(job), cached(job)
    networks, scores = [], []
    for folder in map(Path, job.members):
        best = folder / "checkpoints" / read_json(folder / "train.json")["best"]
        selection = [cases[name] for name in read_json(folder / "train-job.json")["selection"]]
        kept, own = kept_checkpoint(best, config, selection, torch.device("cpu"))
        networks.append(TrainedNetwork.load(kept))
        scores.append(own)
    inference, dsc = best_setting(config, np.concatenate(scores))
    learned = [cases[name] for name in job.train]
    made = write_bundle(
        Path(job.folder) / "bundle",
        weights=[each.weights for each in networks],
        preprocessing=config.preprocessing,
        network=networks[0].settings,
        inference=inference,
        patch_ijk=config.training.patch_ijk,
        info={
            "training_data": {"digest": dataset_digest(index_dataset(Path(job.data)), ""), "cases": len(learned)},
            "domain": domain_ranges(learned),
            "metrics": {"selection_dsc": float(dsc.mean())},
            "config": flatten(config),
        },
    )
    settings = {"threshold": inference.threshold, "keep_largest": inference.keep_largest}
    epochs = [network.epoch for network in networks]
    return {"digest": made.digest, **settings, "calibrated_dsc": float(dsc.mean()), "kept_epochs": epochs}


def predict(job: Job) -> None:
    """Predict a mask for every evaluation case with gtvray's predictor, in one timed run."""
    bundle = Bundle.load(Path(job.folder) / "bundle")
    predictor = Predictor(bundle, threads=job.threads)
    write_masks(job, predictor.predict)


def mean_mask(job: Job) -> dict[str, Any]:
    """Write the mean position of the training masks for every evaluation case."""
    known = index_dataset(Path(job.data)).subset(job.train)
    baseline = MeanPositionBaseline.fit(read_label(case, read_volume(case.image)) for case in known)
    write_masks(job, lambda scan, _: baseline.predict(scan))
    return {"threshold": baseline.threshold, "train_cases": len(known)}


def write_masks(job: Job, mask_of: Any) -> None:
    """Apply a function of scan and file to every evaluation case; the file is named after the case."""
    shutil.rmtree(job.masks, ignore_errors=True)
    for case in index_dataset(Path(job.judged)).subset(job.cases):
        write_volume(Path(job.masks) / f"{case.case_id}.nii.gz", mask_of(read_volume(case.image), case.image))


def score(job: Job) -> dict[str, Any]:
    """Score mask files of any contestant on the original grid."""
    rows, digest = [], hashlib.sha256()
    for case in index_dataset(Path(job.judged)).subset(job.cases):
        reference = read_label(case, read_volume(case.image))
        mask = read_binary(Path(job.masks) / f"{case.case_id}.nii.gz")
        found = score_case(case.case_id, reference, mask)
        rows.append({"case": case.case_id, "dsc": found.dsc, "hd95_mm": found.hd95_mm, "missed": found.missed})
        digest.update(case.case_id.encode() + mask.array.tobytes())
    return {"masks_sha256": digest.hexdigest(), "cases": rows}


if __name__ == "__main__":
    main()
