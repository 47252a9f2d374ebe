"""The audit log: client, input digest, model, time and outcome of each segmentation. It contains no patient data.

The results of jobs that clients read, the jobs that they delete, and refused requests are recorded as well.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from gtvray.io import append_json_line
from gtvray.serving.gateway.results import SegmentationResult
from gtvray.serving.jobs import Jobs
from gtvray.serving.jobs.documents import JobDocument
from gtvray.serving.jobs.records import Requester
from gtvray.serving.request_log import log_event

_MODE = 0o600


class AuditLog:
    """JSON Lines in one file per host, readable by its owner only, flushed to disk before a request is
    answered.

    Args:
        folder: folder of the files; None disables the log.
    """

    def __init__(self, folder: Path | None) -> None:
        self._path = None if folder is None else folder / f"audit-{socket.gethostname()}.jsonl"
        if self._path is not None:
            # Files of earlier versions were readable by everyone; one of another user stays as it is, a new one has it.
            with suppress(OSError):
                self._path.chmod(_MODE)

    @property
    def enabled(self) -> bool:
        """Whether entries are written."""
        return self._path is not None

    async def write(self, request_id: str, **values: Any) -> None:
        """Append an entry with the current time.

        A log that cannot be written to is reported in the server's log, and does not stop the endpoint.
        """
        if self._path is None:
            return
        entry = {"at": datetime.now(UTC).isoformat(timespec="milliseconds"), "request": request_id, **values}
        try:
            await asyncio.to_thread(append_json_line, self._path, entry, _MODE)
        except Exception as error:  # noqa: BLE001  # a failed log entry must not withhold the response
            log_event("audit_failed", request_id, logging.ERROR, kind=type(error).__name__)


class AuditedJobs(Jobs):
    """A job service that records which results clients read and which jobs they delete.

    Args:
        audit: the audit log.
        *arguments: arguments of Jobs.
    """

    def __init__(self, audit: AuditLog, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._audit = audit

    async def cancel(self, who: Requester, job_id: str) -> JobDocument:
        """Cancel and delete a job, as `Jobs.cancel`."""
        document = await super().cancel(who, job_id)
        await self._audit.write(job_id, client=who.name, outcome="deleted")
        return document

    async def result(self, who: Requester, job_id: str, number: int) -> tuple[SegmentationResult, bytes]:
        """Return the result of a volume, as `Jobs.result`."""
        document, mask = await super().result(who, job_id, number)
        known = {"model": document.model.digest, "version": document.model.version}
        await self._audit.write(job_id, client=who.name, outcome="read", volume=number, **known)
        return document, mask
