"""The audit log: who had which input segmented by which model, when, and with which outcome. No data of a patient."""

from __future__ import annotations

import asyncio
import logging
import socket
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from gtvray.io import append_json_line
from gtvray.serving.request_log import log_event


class AuditLog:
    """JSON Lines in one file per host, flushed to disk before a request is answered.

    Args:
        folder: of the files; None keeps no log.
    """

    def __init__(self, folder: Path | None) -> None:
        self._path = None if folder is None else folder / f"audit-{socket.gethostname()}.jsonl"

    async def write(self, request_id: str, **values: Any) -> None:
        """Append an entry with the current time.

        A log that cannot be written to is reported in the server's log, and does not stop the endpoint.
        """
        if self._path is None:
            return
        entry = {"at": datetime.now(UTC).isoformat(timespec="milliseconds"), "request": request_id, **values}
        try:
            await asyncio.to_thread(append_json_line, self._path, entry)
        except Exception as error:  # noqa: BLE001  # an answer that is ready is not withheld
            log_event("audit_failed", request_id, logging.ERROR, kind=type(error).__name__)
