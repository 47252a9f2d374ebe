"""The fingerprint of a dataset: digest of its files, and the medians that a training plan is based on."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from gtvray.data.cache.prepared import CachedCase


@dataclass(frozen=True)
class Fingerprint:
    """Digest of the files, and medians over the training cases.

    Attributes:
        digest: sha256 over every case id with its scan's and mask's digests; `open_project` adds which cases share a
            patient.
        cases: number of cases.
        spacing_mm: median spacing of the scans along their own axes.
        prepared_shape: median size on the prepared grid.
        tumour_ml: median tumour volume.
    """

    digest: str
    cases: int
    spacing_mm: tuple[float, float, float]
    prepared_shape: tuple[int, int, int]
    tumour_ml: float

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def fingerprint(cases: list[CachedCase], train: list[CachedCase]) -> Fingerprint:
    """The fingerprint of a dataset.

    Args:
        cases: all prepared cases, for the digest.
        train: training cases; the medians are theirs, since a plan may not look at others.
    """
    return Fingerprint(
        digest=files_digest(cases),
        cases=len(cases),
        spacing_mm=_medians([case.meta["source_spacing_mm"] for case in train]),
        prepared_shape=_int_medians([list(case.shape) for case in train]),
        tumour_ml=median(case.meta["tumour_ml"] for case in train),
    )


def files_digest(cases: list[CachedCase]) -> str:
    """sha256 over every case id with its scan's and mask's digests."""
    return digest_of((case.case_id, case.meta["image_sha256"], case.meta["label_sha256"]) for case in cases)


def digest_of(cases: Iterable[tuple[str, str, str]]) -> str:
    """sha256 over cases as (case id, digest of its scan, digest of its mask), in any order."""
    return hashlib.sha256("\n".join(sorted(" ".join(case) for case in cases)).encode()).hexdigest()


def _medians(rows: list[list[float]]) -> tuple[float, float, float]:
    i, j, k = (float(median(column)) for column in zip(*rows, strict=True))
    return i, j, k


def _int_medians(rows: list[list[int]]) -> tuple[int, int, int]:
    i, j, k = (int(median(column)) for column in zip(*rows, strict=True))
    return i, j, k
