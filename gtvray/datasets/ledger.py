"""The ledger of looks: who scored which model on which cases, and why. Every look at held-out cases devalues them.

The best of n equally good models scores higher than its true value by chance: by 1.2 standard errors of the mean for
n = 5 and by 1.9 for n = 20, nearly half of a 95 % interval. The thresholds of the warnings follow from this.
"""

from __future__ import annotations

import getpass
import os
from collections.abc import Collection, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from gtvray.io import append_json_line, read_json_lines, sha256_of

MANY_LOOKS = 5
TOO_MANY_LOOKS = 20
# An environment variable and not a setting: settings are sent to MLflow, and this one names a person.
WHO = "GTVRAY_WHO"
_KEYS = {"at", "purpose", "subject", "data", "cases"}


class Ledger:
    """An append-only file of looks, one JSON object per line.

    Args:
        path: the file, created at the first look.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def record(
        self,
        purpose: str,
        subject: str,
        case_ids: tuple[str, ...],
        data: str,
        scans: Sequence[Path] = (),
        *,
        known: Collection[str] = (),
    ) -> int:
        """Record a look; on disk when this returns. Several processes may record at once.

        Args:
            purpose: such as "promotion".
            subject: the model that was scored, such as a bundle digest.
            case_ids: the cases it was scored on.
            data: fingerprint of the dataset.
            scans: files of these cases; their digests identify the same scans in another folder.
            known: subjects that other ledgers are known to have recorded for these cases.

        Returns:
            the number of different subjects scored on any of these cases so far, for any purpose.
        """
        look = {
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
            "who": who(),
            "purpose": purpose,
            **_look(subject, case_ids, data, scans),
        }
        append_json_line(self._path, look)
        return self._count(look, known)

    def count(
        self,
        subject: str,
        case_ids: tuple[str, ...],
        data: str,
        scans: Sequence[Path] = (),
        *,
        known: Collection[str] = (),
    ) -> int:
        """Return what `record` would return, without recording anything."""
        return self._count(_look(subject, case_ids, data, scans), known)

    def _count(self, look: dict[str, Any], known: Collection[str]) -> int:
        subjects = {entry["subject"] for entry in self.looks() if _overlap(entry, look)}
        return len({look["subject"], *known, *subjects})

    def looks(self) -> list[dict[str, Any]]:
        """Return every look; invalid lines, such as a crash may leave, are skipped."""
        return [entry for entry in read_json_lines(self._path) if isinstance(entry, dict) and entry.keys() >= _KEYS]

    def table(self) -> list[dict[str, Any]]:
        """Return every look with the number of subjects scored on any of its cases up to then."""
        looks, rows = self.looks(), []
        for number, look in enumerate(looks, 1):
            subjects = {entry["subject"] for entry in looks[:number] if _overlap(entry, look)}
            rows.append({**look, "looks": len(subjects), "warning": looks_warning(len(subjects))})
        return rows


def looks_warning(looks: int) -> str | None:
    """Return the warning for cases on which this number of models has been scored; None for few."""
    if looks > TOO_MANY_LOOKS:
        return f"{looks} models have been scored on these cases: their scores can no longer rank models"
    if looks > MANY_LOOKS:
        return f"{looks} models have been scored on these cases: use new held-out cases"
    return None


def _look(subject: str, case_ids: tuple[str, ...], data: str, scans: Sequence[Path]) -> dict[str, Any]:
    return {"subject": subject, "data": data, "cases": sorted(case_ids), "scans": sorted(map(sha256_of, scans))}


def _overlap(one: dict[str, Any], other: dict[str, Any]) -> bool:
    if set(one.get("scans", ())) & set(other.get("scans", ())):
        return True
    # The first version recorded no digests; its looks are matched by data and case.
    return one["data"] == other["data"] and bool(set(one["cases"]) & set(other["cases"]))


def who() -> str:
    """Return the name in GTVRAY_WHO, or that of the account."""
    try:
        return (os.environ.get(WHO) or getpass.getuser())[:100]
    except (OSError, KeyError):
        # In a container the user id may have no name.
        return f"user {os.getuid()}"
