"""A dataset made ready: split, prepared, fingerprinted, with its split kept for the next time."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from gtvray.config import Config
from gtvray.data.cache import CachedCase, CaseCache
from gtvray.data.fingerprint import Fingerprint, fingerprint
from gtvray.data.layouts import Case, Dataset
from gtvray.data.splits import Split, split_cases


@dataclass(frozen=True)
class Project:
    """Cases by what they are for.

    Attributes:
        dataset: all cases.
        split: which case is for what.
        train, selection: prepared cases.
        fingerprint: of the dataset.
    """

    dataset: Dataset
    split: Split
    train: list[CachedCase]
    selection: list[CachedCase]
    fingerprint: Fingerprint

    @property
    def held_out(self) -> tuple[Case, ...]:
        """The cases no choice may look at, as they came."""
        return self.dataset.subset(self.split.held_out)


def open_project(
    dataset: Dataset, config: Config, *, cache: Path, splits: Path, report: Callable[[int, int], None] | None = None
) -> Project:
    """Split a dataset and prepare its cases.

    The split is stored under the dataset's fingerprint and found again there.

    Args:
        dataset: sound cases.
        config: split, preprocessing and cache settings.
        cache: folder of prepared cases.
        splits: folder of stored splits.
        report: told (done, all) after each case.

    Raises:
        DataError: too few cases, or one that is not usable.
        ResourceError: the disk is full.
    """
    prepared = CaseCache(cache, config.preprocessing, config.cache).prepare_all(dataset.cases, report)
    by_id = {case.case_id: case for case in prepared}
    split = split_cases(tuple(by_id), config.split)
    train = [by_id[case_id] for case_id in split.train]
    data = fingerprint(prepared, train)
    settings = hashlib.sha256(config.split.model_dump_json().encode()).hexdigest()[:8]
    stored = splits / f"{data.digest[:16]}-{settings}.json"
    if stored.exists():
        split, _ = Split.load(stored)
    else:
        split.save(stored, data.digest)
    return Project(
        dataset=dataset,
        split=split,
        train=[by_id[case_id] for case_id in split.train],
        selection=[by_id[case_id] for case_id in split.selection],
        fingerprint=data,
    )
