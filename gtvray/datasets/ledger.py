"""The ledger of looks: who looked at which cases for what. Each look at held-out cases makes them worth less.

Of n models that are all as good, the best on some cases looks better than it is by chance alone: of 5 by 1.2 standard
errors of the mean, of 20 by 1.9, which is nearly the half of a 95 % interval. Hence the numbers from which it warns.
"""

from __future__ import annotations

import getpass
import os
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from gtvray.io import append_json_line, read_json_lines, sha256_of

MANY_LOOKS = 5
TOO_MANY_LOOKS = 20
# Names a person, so it stands in this file only: in no setting, as those go to MLflow.
WHO = "GTVRAY_WHO"
_KEYS = {"at", "purpose", "subject", "data", "cases"}


class Ledger:
    """An append-only file of looks, one JSON object a line.

    Args:
        path: the file; made at the first look.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def record(
        self, purpose: str, subject: str, case_ids: tuple[str, ...], data: str, scans: Sequence[Path] = ()
    ) -> int:
        """Write down a look.

        Args:
            purpose: such as "promotion".
            subject: what was scored, such as a bundle digest.
            case_ids: the cases looked at.
            data: fingerprint of the dataset.
            scans: files of these cases; by their digests the same scans are known again in another folder.

        Returns:
            how many different subjects have been scored on any of these cases by now, for whatever purpose.
        """
        look = {
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
            "who": _who(),
            "purpose": purpose,
            "subject": subject,
            "data": data,
            "cases": sorted(case_ids),
            "scans": sorted(map(sha256_of, scans)),
        }
        append_json_line(self._path, look)
        return len({entry["subject"] for entry in self.looks() if _overlap(entry, look)})

    def looks(self) -> list[dict[str, Any]]:
        """Every look so far; lines that are none, as a crash may leave them, are passed over."""
        return [entry for entry in read_json_lines(self._path) if isinstance(entry, dict) and entry.keys() >= _KEYS]

    def table(self) -> list[dict[str, Any]]:
        """Every look so far, with how many subjects had been scored on any of its cases by then."""
        looks, rows = self.looks(), []
        for number, look in enumerate(looks, 1):
            subjects = {entry["subject"] for entry in looks[:number] if _overlap(entry, look)}
            rows.append({**look, "looks": len(subjects), "warning": looks_warning(len(subjects))})
        return rows


def looks_warning(looks: int) -> str | None:
    """What to say of cases on which so many models have been scored; None while they are few."""
    if looks > TOO_MANY_LOOKS:
        return f"{looks} models have been scored on these cases: their scores no longer tell which is better"
    if looks > MANY_LOOKS:
        return f"{looks} models have been scored on these cases: take fresh ones"
    return None


def _overlap(one: dict[str, Any], other: dict[str, Any]) -> bool:
    if set(one.get("scans", ())) & set(other.get("scans", ())):
        return True
    # Looks of before there were digests are known by data and case.
    return one["data"] == other["data"] and bool(set(one["cases"]) & set(other["cases"]))


def _who() -> str:
    """A name of one's choice, else that of the account."""
    try:
        return (os.environ.get(WHO) or getpass.getuser())[:100]
    except (OSError, KeyError):
        # A container may run under a number that has no name.
        return f"user {os.getuid()}"
