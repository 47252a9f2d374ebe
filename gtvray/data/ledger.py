"""The ledger of looks: who looked at which cases for what. Each look at held-out cases makes them worth less."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any


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
        self._path.parent.mkdir(parents=True, exist_ok=True)
        # One write of one line: O_APPEND keeps lines of several writers whole.
        handle = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            size = os.fstat(handle).st_size
            # A line that a crash cut off must not swallow this one.
            start = "\n" if size and os.pread(handle, 1, size - 1) != b"\n" else ""
            os.write(handle, (start + json.dumps(look) + "\n").encode())
            os.fsync(handle)
        finally:
            os.close(handle)
        same = [entry for entry in self.looks() if entry["purpose"] == purpose and entry["data"] == data]
        return len({entry["subject"] for entry in same if set(entry["cases"]) & set(case_ids)})

    def looks(self) -> list[dict[str, Any]]:
        """Every look so far; a line cut off by a crash is passed over."""
        if not self._path.exists():
            return []
        entries = []
        for line in self._path.read_text().splitlines():
            try:
                entries.append(json.loads(line))
            except json.JSONDecodeError:
                continue
        return entries
