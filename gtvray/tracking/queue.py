"""A durable queue between a run and MLflow: entries are delivered in order and never lost.

Each entry is appended to a file before anything else happens. A thread delivers the entries and then advances a mark, a
byte offset in a file of its own; after a failed delivery it retries with growing delays. A crash between delivery and
mark delivers entries a second time, so delivery must be idempotent. It is for metrics, since they carry their time
stamp: MLflow stores one row for equal (key, step, time, value).
"""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gtvray.failpoints import failpoint
from gtvray.io import atomic_path, read_text

Entry = dict[str, Any]
_FIRST_RETRY_S = 0.2
_MAX_RETRY_S = 10.0
_log = logging.getLogger(__name__)


class MetricQueue:
    """A persistent queue with one consumer.

    Args:
        path: the queue's file; entries that an earlier process left undelivered are delivered first.
        deliver: consumes entries in order; if it raises, the same entries are delivered again later.
    """

    def __init__(self, path: Path, deliver: Callable[[list[Entry]], None]) -> None:
        self._path, self._mark = path, path.with_suffix(".mark")
        self._deliver = deliver
        path.parent.mkdir(parents=True, exist_ok=True)
        _drop_incomplete_line(path)
        self._file = path.open("ab")
        self._done = int(read_text(self._mark)) if self._mark.exists() else 0
        self._wake, self._closing = threading.Event(), threading.Event()
        self._delivered = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="mlflow-queue", daemon=True)
        self._thread.start()

    def put(self, entry: Entry) -> None:
        """Add an entry; it is on disk when this returns."""
        self._file.write((json.dumps(entry) + "\n").encode())
        self._file.flush()
        os.fsync(self._file.fileno())
        self._wake.set()

    def flush(self, timeout_s: float) -> bool:
        """Wait until every entry added so far is delivered; return False on timeout."""
        size = self._path.stat().st_size
        self._wake.set()
        with self._delivered:
            return self._delivered.wait_for(lambda: self._done >= size, timeout_s)

    def close(self, timeout_s: float) -> bool:
        """Flush and stop the thread; undelivered entries stay on disk.

        Returns:
            whether everything was delivered.
        """
        complete = self.flush(timeout_s)
        self._closing.set()
        self._wake.set()
        self._thread.join(_MAX_RETRY_S)
        self._file.close()
        return complete

    def _run(self) -> None:
        retry_s = _FIRST_RETRY_S
        while not self._closing.is_set():
            entries, end = self._pending()
            if not entries:
                self._wake.wait()
                self._wake.clear()
                continue
            try:
                failpoint("tracking.before_delivery")
                self._deliver(entries)
                failpoint("tracking.after_delivery")
                with atomic_path(self._mark) as temporary:
                    temporary.write_text(str(end))
            except Exception as error:  # noqa: BLE001  # whatever the reason, the entries stay queued
                if retry_s == _FIRST_RETRY_S:
                    _log.warning("cannot deliver to MLflow; entries stay in %s and are retried: %s", self._path, error)
                self._closing.wait(retry_s)
                retry_s = min(2 * retry_s, _MAX_RETRY_S)
                continue
            retry_s = _FIRST_RETRY_S
            with self._delivered:
                self._done = end
                self._delivered.notify_all()

    def _pending(self) -> tuple[list[Entry], int]:
        """Read the undelivered entries, and the offset at which they end."""
        with self._path.open("rb") as file:
            file.seek(self._done)
            content = file.read()
        # A line that is still being written has no newline yet.
        complete = content[: content.rfind(b"\n") + 1]
        entries = [json.loads(line) for line in complete.splitlines() if line.strip()]
        return entries, self._done + len(complete)


def _drop_incomplete_line(path: Path) -> None:
    """Truncate a last line without a newline: a crash cut it off before `put` returned."""
    if path.exists():
        content = path.read_bytes()
        os.truncate(path, content.rfind(b"\n") + 1)
