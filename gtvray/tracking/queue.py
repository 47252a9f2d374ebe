"""A queue on disk between trials and MLflow: entries arrive in order, none lost, none twice.

Each entry is appended to a file before anything else happens. A thread delivers the entries and then moves a mark on;
when delivery fails it tries again, ever more slowly. Delivering an entry twice, after a crash between delivery and
mark, must change nothing: metrics carry their time stamp, and MLflow keeps one row for equal (key, step, time, value).
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gtvray.failpoints import failpoint
from gtvray.io import atomic_path, read_text

Entry = dict[str, Any]
_FIRST_WAIT_S = 0.2
_LONGEST_WAIT_S = 10.0


class MetricQueue:
    """A persistent queue with one consumer.

    Args:
        path: the queue's file; what an earlier process left undelivered is delivered first.
        deliver: takes entries in order; raising means "again later".
    """

    def __init__(self, path: Path, deliver: Callable[[list[Entry]], None]) -> None:
        self._path, self._mark = path, path.with_suffix(".mark")
        self._deliver = deliver
        path.parent.mkdir(parents=True, exist_ok=True)
        _drop_half_line(path)
        self._file = path.open("ab")
        self._done = int(read_text(self._mark)) if self._mark.exists() else 0
        self._wake, self._closing = threading.Event(), threading.Event()
        self._delivered = threading.Condition()
        self.last_error: str | None = None
        self._thread = threading.Thread(target=self._run, name="mlflow-spool", daemon=True)
        self._thread.start()

    def put(self, entry: Entry) -> None:
        """Add an entry; returns once it is on disk."""
        self._file.write((json.dumps(entry) + "\n").encode())
        self._file.flush()
        os.fsync(self._file.fileno())
        self._wake.set()

    def flush(self, timeout_s: float) -> bool:
        """Wait until everything put so far has been delivered; False if the time was too short."""
        size = self._path.stat().st_size
        self._wake.set()
        with self._delivered:
            return self._delivered.wait_for(lambda: self._done >= size, timeout_s)

    def close(self, timeout_s: float) -> bool:
        """Flush and end the thread; what is left stays on disk.

        Returns:
            whether everything was delivered.
        """
        complete = self.flush(timeout_s)
        self._closing.set()
        self._wake.set()
        self._thread.join(_LONGEST_WAIT_S)
        self._file.close()
        return complete

    def _run(self) -> None:
        wait_s = _FIRST_WAIT_S
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
            except Exception as error:  # noqa: BLE001  # whatever keeps MLflow from answering, the entries stay
                self.last_error = str(error)
                self._closing.wait(wait_s)
                wait_s = min(2 * wait_s, _LONGEST_WAIT_S)
                continue
            wait_s = _FIRST_WAIT_S
            with self._delivered:
                self._done = end
                self._delivered.notify_all()

    def _pending(self) -> tuple[list[Entry], int]:
        with self._path.open("rb") as file:
            file.seek(self._done)
            content = file.read()
        # A line that is being written has no end yet.
        whole = content[: content.rfind(b"\n") + 1]
        entries = [json.loads(line) for line in whole.splitlines() if line.strip()]
        return entries, self._done + len(whole)


def _drop_half_line(path: Path) -> None:
    """Cut off what a crash left without an end: it was never acknowledged, and would spoil the line after it."""
    if path.exists():
        content = path.read_bytes()
        os.truncate(path, content.rfind(b"\n") + 1)
