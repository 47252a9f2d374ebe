"""gtvray in the accuracy benchmark and its ablations: from scans to a bundle to scores, stage by stage."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from _accuracy_jobs import Job, digest_of, run_stage, run_stages, shaping
from _accuracy_report import Table, machine, summary_of, versions

from gtvray.config import Config, with_dotted
from gtvray.data import dataset_digest
from gtvray.datasets import Dataset, Folds, Split, find_patients, index_dataset, split_folds
from gtvray.errors import InputError
from gtvray.io import sha256_of

# Share of a time budget reserved for calibration and for epochs that are slower than the first.
RESERVE = 0.03


@dataclass(frozen=True)
class Cases:
    """Cases of a dataset.

    Attributes:
        folder: folder of the dataset.
        dataset: index of the dataset.
        digest: digest of all files of the dataset.
        ids: ids of the selected cases.
    """

    folder: Path
    dataset: Dataset
    digest: str
    ids: tuple[str, ...]

    @classmethod
    def open(cls, folder: Path) -> Cases:
        """Open all cases of a dataset; their files are read for the digest."""
        dataset = index_dataset(folder)
        ids = tuple(case.case_id for case in dataset.cases)
        return cls(folder.resolve(), dataset, dataset_digest(dataset, ""), ids)

    def only(self, ids: tuple[str, ...]) -> Cases:
        """Return a subset of the cases."""
        return replace(self, ids=ids)


def require_apart(data: Cases, val: Cases) -> None:
    """Reject evaluation cases that are training cases too.

    Raises:
        InputError: a scan is in both datasets.
    """
    known = {sha256_of(case.image) for case in data.dataset.cases}
    shared = [case.case_id for case in val.dataset.cases if sha256_of(case.image) in known]
    if shared:
        raise InputError("a scan is in --data and in --val", found=", ".join(shared), do="remove it from one of them")


def budgeted(config: Config, given: Namespace, seed: int, minutes: float, epochs: int | None) -> Config:
    """Return the settings with a seed, a budget and the number of threads."""
    budget = {"training.time_budget_s": 0.0 if epochs else 60 * minutes * (1 - RESERVE)}
    counted = {"training.epochs": epochs} if epochs else {}
    workers = {"training.num_workers": 1, "training.cpus_per_worker": given.threads, "training.use_gpu": False}
    return with_dotted(config, {**budget, **counted, **workers, "training.seed": seed}, "benchmark")


def contest(given: Namespace, name: str, config: Config, data: Cases, judged: Cases, *, folds: int = 1) -> Table:
    """Run gtvray from scans to scores.

    Args:
        given: command-line arguments.
        name: prefix of the folder name; the digest of the settings that determine the model follows.
        config: settings with the budget of each training.
        data: training cases.
        judged: evaluation cases.
        folds: number of trainings that form the ensemble, each on all cases except its fold; with one, on all except
            `training.selection_cases` cases.
    """
    prepared, cache = preparation(given, config, data)
    shaped = shaping(config)
    whole = {"data": data.digest, "known": sorted(data.ids), "folds": folds, **shaped}
    folder = given.work.resolve() / f"{name}-{digest_of(whole)}"
    looked = folder / f"judged-{digest_of({'data': judged.digest, 'cases': sorted(judged.ids)})}"
    job = Job(
        data=str(data.folder),
        train=data.ids,
        judged=str(judged.folder),
        cases=judged.ids,
        config=config.model_dump(mode="json"),
        threads=given.threads,
        cache=str(cache),
        folder=str(folder),
        masks=str(looked / "masks"),
    )
    trainings = members(job, config, data, prepared["tumour_ml"], folds)
    at_once = given.threads // trainings[0].threads
    trained = run_stages("train", {Path(each.folder) / "train.json": each for each in trainings}, at_once)
    job = replace(job, members=tuple(each.folder for each in trainings))
    bundled = run_stage("bundle", job, folder / "bundle.json")
    predicted = run_stage("predict", job, looked / "predict.json")
    scored = run_stage("score", job, looked / "score.json")
    settings = {key: value for key, value in shaped.items() if key != "training.seed"}
    return {
        "train": data.digest,
        "val": judged.digest,
        "config": given.config.name if given.config else None,
        "settings": {**settings, "folds": folds},
        "summary": summary_of(scored["cases"]),
        **costs(prepared, together(trained, bundled, at_once), predicted),
        "steps": sum(each["steps"] for each in trained),
        "trainings": trained,
        **{key: value for key, value in bundled.items() if key not in ("seconds", "cpu_s", "load")},
        "masks_sha256": scored["masks_sha256"],
        "versions": versions(),
        "machine": machine(given.threads),
        "cases": scored["cases"],
    }


def members(job: Job, config: Config, data: Cases, tumour_ml: Mapping[str, float], folds: int) -> list[Job]:
    """Run the trainings of a contestant: one with all threads, or its folds in parallel with one thread each.

    The seed also determines the folds, and each training has its own seed, as with `gtvray train --fold all`.
    """
    count, seed = config.training.selection_cases, config.training.seed
    if folds == 1:
        selection = evenly(tumour_ml, data.ids, count)
        return [replace(job, train=apart(data.ids, selection), selection=selection)]
    divided = folds_of(tumour_ml, data, config, folds, seed)
    made = []
    for number, own in enumerate(divided.validation):
        first = evenly(tumour_ml, own, count)
        changes = {"training.seed": folds * seed + number, "training.cpus_per_worker": 1}
        member = with_dotted(config, changes, "benchmark").model_dump(mode="json")
        made.append(
            replace(
                job,
                train=divided.train(number),
                selection=(*first, *apart(own, first)),
                config=member,
                threads=1,
                folder=f"{job.folder}/fold-{number}",
            )
        )
    return made


def folds_of(tumour_ml: Mapping[str, float], data: Cases, config: Config, count: int, seed: int) -> Folds:
    """Draw folds that depend only on the cases, their tumours and a seed."""
    patients = find_patients(data.dataset, config.split.patient_pattern)
    return split_folds(Split(data.ids, (), ()), count, seed, tumour_ml, patients)


def apart(cases: tuple[str, ...], from_: tuple[str, ...]) -> tuple[str, ...]:
    """Return the cases that are not in another selection."""
    return tuple(case for case in cases if case not in from_)


def together(trained: Sequence[Mapping[str, Any]], bundled: Mapping[str, Any], at_once: int) -> dict[str, float]:
    """Cost of parallel trainings and of writing their bundle."""
    parts = [*trained, bundled]
    return {
        "seconds": sum(each["seconds"] for each in trained) / min(at_once, len(trained)) + bundled["seconds"],
        "cpu_s": sum(each["cpu_s"] for each in parts),
        "load": max(each["load"] for each in parts),
    }


def costs(prepared: Mapping[str, Any], trained: Mapping[str, Any], predicted: Mapping[str, Any]) -> dict[str, float]:
    """Seconds, CPU seconds and machine load of the three timed stages."""
    stages = {"prepare": prepared, "train": trained, "predict": predicted}
    keys = {"seconds": "s", "cpu_s": "cpu_s", "load": "load"}
    return {f"{stage}_{short}": found[key] for stage, found in stages.items() for key, short in keys.items()}


def preparation(given: Namespace, config: Config, data: Cases) -> tuple[dict[str, Any], Path]:
    """Prepare the cases of a dataset: cost and cache; shared by all runs with the same preprocessing."""
    shaped = {**shaping(config, ("preprocessing", "cache")), "data": data.digest}
    folder = given.work.resolve() / f"prepared-{digest_of(shaped)}"
    job = Job(
        data=str(data.folder),
        config=config.model_dump(mode="json"),
        threads=given.threads,
        cache=str(folder / "cache"),
        folder=str(folder),
    )
    return run_stage("prepare", job, folder / "prepare.json"), folder / "cache"


def evenly(tumour_ml: Mapping[str, float], cases: tuple[str, ...], count: int) -> tuple[str, ...]:
    """Pick cases evenly from the smallest tumour to the largest, so that calibration covers all sizes."""
    ranked = sorted(cases, key=lambda case: (tumour_ml[case], case))
    step = len(ranked) / min(count, len(ranked))
    return tuple(ranked[int((number + 0.5) * step)] for number in range(min(count, len(ranked))))
