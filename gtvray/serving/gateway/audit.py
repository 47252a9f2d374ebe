"""The audit log: client, input digest, model, time and outcome of each segmentation. It contains no patient data."""

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
        folder: folder of the files; None disables the log.
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
        except Exception as error:  # noqa: BLE001  # a failed log entry must not withhold the response
            log_event("audit_failed", request_id, logging.ERROR, kind=type(error).__name__)
