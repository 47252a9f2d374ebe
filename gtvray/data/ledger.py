"""The ledger of looks: who looked at which cases for what. Each look at held-out cases makes them worth less."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from gtvray.io import append_json_line, read_json_lines


class Ledger:
    """An append-only file of looks, one JSON object a line.

    Args:
        path: the file; made at the first look.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def record(self, purpose: str, subject: str, case_ids: tuple[str, ...], data: str) -> int:
        """Write down a look.

        Args:
            purpose: such as "promotion".
            subject: what was scored, such as a bundle digest.
            case_ids: the cases looked at.
            data: fingerprint of the dataset.

        Returns:
            how many different subjects have been scored on these cases of this dataset for this purpose by now.
        """
        look = {
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
            "purpose": purpose,
            "subject": subject,
            "data": data,
            "cases": sorted(case_ids),
        }
        append_json_line(self._path, look)
        same = [entry for entry in self.looks() if entry["purpose"] == purpose and entry["data"] == data]
        return len({entry["subject"] for entry in same if set(entry["cases"]) & set(case_ids)})

    def looks(self) -> list[dict[str, Any]]:
        """Every look so far."""
        return read_json_lines(self._path)
