"""Ranking of predicted cases for review, from the report of `gtvray predict`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gtvray.errors import InputError
from gtvray.io import read_json

VALUE_OF_ORDER = (
    "A failure, an empty mask and a scan outside the training domain are reasons to review. The order by uncertainty "
    "is weak: across 42 real cases it did not follow Dice (Spearman -0.05), so a case that is not listed may be "
    "worse. Review a random sample as well."
)


@dataclass(frozen=True)
class ReviewCase:
    """A case to review.

    Attributes:
        scan: the scan as named in the report.
        reason: why.
        uncertainty: 0 to 1, one minus the expected Dice; None if it was not estimated.
    """

    scan: str
    reason: str
    uncertainty: float | None


def review_order(report: Path) -> list[ReviewCase]:
    """Order the cases of a report: failed, out of domain, empty, with a fallback, then by uncertainty.

    Raises:
        NotFoundError: no such file.
        InputError: the file is not a report of `gtvray predict`.
    """
    stored = read_json(report)
    rows = stored.get("cases") if isinstance(stored, dict) else None
    if not isinstance(rows, list) or not all(isinstance(row, dict) and "scan" in row for row in rows):
        raise InputError(
            "not a report of `gtvray predict --report`",
            where=report,
            expected='an entry "cases"',
            do="pass the report.json that `gtvray predict --report` wrote",
        )
    ranked = [(_rank(row), _case(row)) for row in rows]
    # The sort is stable, so cases of equal rank without an estimate keep the order of the report.
    return [case for _, case in sorted(ranked, key=lambda each: (each[0], -(each[1].uncertainty or 0.0)))]


def _case(row: dict[str, Any]) -> ReviewCase:
    uncertainty = row.get("uncertainty", {}).get("expected_dice_loss")
    match _rank(row):
        case 0:
            reason = f"failed: {row['error']['title']}"
        case 1:
            reason = f"out of domain: {'; '.join(row['out_of_domain'])}"
        case 2:
            reason = "the mask is empty"
        case 3:
            reason = f"fallback: {row['fallback']}"
        case _:
            reason = "no flag" if uncertainty is None else "uncertainty"
    return ReviewCase(str(row["scan"]), reason, uncertainty)


def _rank(row: dict[str, Any]) -> int:
    if "error" in row:
        return 0
    if row.get("out_of_domain"):
        return 1
    if not row.get("volume_ml"):
        return 2
    return 3 if row.get("fallback") else 4
