"""A durable queue between a run and MLflow: entries are delivered in order and never lost.

Each entry is first appended to a file. A thread delivers the entries and then advances a mark, a byte offset stored in
a file of its own; after a failed delivery it retries with increasing delays. An entry that the consumer will never
accept is moved to a separate file with the reason, and delivery continues with the next one. A crash between delivery
and mark delivers entries a second time, so delivery must be idempotent: metrics carry their time stamp, and MLflow
stores one row for equal (key, step, time, value).
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

from gtvray.failpoints import failpoint
from gtvray.io import atomic_path, read_text
from gtvray.tracking.rejected import RejectedFile, Rejection

Entry = dict[str, Any]
# Name of the file in the folder of a sweep or training; earlier versions called the queue a spool.
QUEUE_FILE = "spool.jsonl"
_FIRST_RETRY_S = 0.2
_MAX_RETRY_S = 10.0
_LONGEST_UPLOAD_S, _POLL_S = 600.0, 0.1
# Entries of one delivery: MLflow takes 1,000 metrics in a request.
_BATCH = 100
_log = logging.getLogger(__name__)


class MetricQueue:
    """A persistent queue with one consumer.

    Args:
        path: the queue's file; entries that an earlier process left undelivered are delivered first.
        deliver: consumes entries in order and returns those that it will never accept; if it raises, the same entries
            are delivered again later.
        again: deliver all entries from the first one, including those that were delivered or set aside before.
    """

    def __init__(self, path: Path, deliver: Callable[[list[Entry]], list[Rejection]], again: bool = False) -> None:
        self._path, self._mark = path, path.with_suffix(".mark")
        self._deliver = deliver
        path.parent.mkdir(parents=True, exist_ok=True)
        _drop_incomplete_line(path)
        self._file = path.open("ab")
        self._rejected = RejectedFile(path)
        if again:
            self._write_mark(0)
            self._rejected.clear()
        self._done = self._read_mark()
        self._wake, self._closing = threading.Event(), threading.Event()
        self._delivered, self._failing = threading.Condition(), False
        self._thread = threading.Thread(target=self._run, name="mlflow-queue", daemon=True)
        self._thread.start()

    def put(self, entry: Entry) -> None:
        """Add an entry; it is on disk when this returns."""
        self._file.write((json.dumps(entry) + "\n").encode())
        self._file.flush()
        os.fsync(self._file.fileno())
        self._wake.set()

    def flush(self, timeout_s: float) -> bool:
        """Wait until every entry added so far is delivered or set aside.

        It waits up to ten minutes for a delivery in progress, such as the upload of a bundle.

        Args:
            timeout_s: maximum time to wait while deliveries fail, in seconds.

        Returns:
            whether everything was delivered or set aside.
        """
        size = self._path.stat().st_size
        self._wake.set()
        began = time.monotonic()
        with self._delivered:
            while self._done < size:
                waited_s = time.monotonic() - began
                if waited_s >= _LONGEST_UPLOAD_S or (waited_s >= timeout_s and self._failing):
                    return False
                self._delivered.wait(_POLL_S)
        return True

    def close(self, timeout_s: float) -> bool:
        """Flush and stop the thread; undelivered entries stay on disk.

        Returns:
            whether every entry was delivered or set aside.
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
            try:
                end = self._deliver_next()
            except Exception as error:  # noqa: BLE001  # whatever the reason, the entries stay queued
                if retry_s == _FIRST_RETRY_S:
                    _log.warning("cannot deliver to MLflow; entries stay in %s and are retried: %s", self._path, error)
                self._failing = True
                self._closing.wait(retry_s)
                retry_s = min(2 * retry_s, _MAX_RETRY_S)
                continue
            if end == self._done:
                self._wake.wait()
                self._wake.clear()
                continue
            retry_s = _FIRST_RETRY_S
            with self._delivered:
                self._done, self._failing = end, False
                self._delivered.notify_all()

    def _deliver_next(self) -> int:
        """Deliver the next entries, and return the offset at which they end."""
        entries, damaged, end = self._pending()
        if end == self._done:
            return end
        failpoint("tracking.before_delivery")
        refused = self._deliver(entries) if entries else []
        failpoint("tracking.after_delivery")
        if damaged or refused:
            self._rejected.add([*damaged, *refused])
        self._write_mark(end)
        return end

    def _pending(self) -> tuple[list[Entry], list[Rejection], int]:
        """Read the next undelivered entries and damaged lines, and the offset at which they end."""
        entries: list[Entry] = []
        damaged: list[Rejection] = []
        end = self._done
        with self._path.open("rb") as file:
            file.seek(self._done)
            for line in islice(file, _BATCH):
                # A line that is still being written has no newline yet.
                if not line.endswith(b"\n"):
                    break
                end += len(line)
                text = line.decode(errors="replace").strip("\0 \n")
                entry = _parsed(text)
                if entry is not None:
                    entries.append(entry)
                elif text:
                    damaged.append(Rejection({"line": text}, "the line of the queue's file is damaged"))
        return entries, damaged, end

    def _read_mark(self) -> int:
        try:
            done = int(read_text(self._mark)) if self._mark.exists() else 0
        except ValueError:
            return 0
        # Beyond the end of a file that was restored from a backup, new entries would never be read.
        return done if done <= self._path.stat().st_size else 0

    def _write_mark(self, offset: int) -> None:
        with atomic_path(self._mark) as temporary:
            temporary.write_text(str(offset))


def _parsed(text: str) -> Entry | None:
    """Parse the entry of a line; None if the line is damaged."""
    try:
        entry = json.loads(text)
    except ValueError:
        return None
    return entry if isinstance(entry, dict) else None


def _drop_incomplete_line(path: Path) -> None:
    """Truncate a last line without a newline: a crash cut it off before `put` returned."""
    if path.exists():
        content = path.read_bytes()
        os.truncate(path, content.rfind(b"\n") + 1)
