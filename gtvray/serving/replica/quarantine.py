"""Quarantine of scans that kill replicas, such as those at which two replicas died at the same point.

When a replica dies, all requests on it fail. Those that were only waiting are sent to another replica. Those that were
being processed are suspects: they are retried one at a time, so that a further death identifies the scan that causes
it, and the others complete.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from gtvray.errors import DataError

_Result = TypeVar("_Result")
# Number of deaths at the same point, and at any point, after which a scan is rejected.
_AT_ONE_POINT, _AT_ANY = 2, 5
# The scan may be innocent, as when something else killed the replicas.
_REFUSED_S = 3600.0
_MOST_SCANS = 10_000
_LINE_BYTES = 32
_WAITING = "waiting"


class Journal:
    """The point at which a replica processes a scan, in a file that survives the death of the replica.

    A batch that is running when its scan is cancelled ends after the journal is closed; its writes are then dropped.

    Args:
        path: path of the file.
    """

    def __init__(self, path: Path) -> None:
        self._file: int | None = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._lock = threading.Lock()

    def write(self, point: str) -> None:
        """Record that the scan is being processed at a point."""
        with self._lock:
            if self._file is not None:
                os.pwrite(self._file, point.encode()[:_LINE_BYTES].ljust(_LINE_BYTES), 0)

    def wait(self) -> None:
        """Record that the scan is not being processed."""
        self.write(_WAITING)

    def at(self, point: str, function: Callable[..., _Result]) -> Callable[..., _Result]:
        """Wrap a function so that the journal contains `point` while it runs."""

        def recorded(*arguments: Any) -> _Result:
            self.write(point)
            try:
                return function(*arguments)
            finally:
                self.wait()

        return recorded

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            file, self._file = self._file, None
            if file is not None:
                os.close(file)


def read_point(path: Path) -> str | None:
    """Read from a journal at which point the scan was being processed; None if it was waiting, or if unknown."""
    with suppress(OSError):
        point = path.read_bytes().decode().strip()
        return None if point in ("", _WAITING) else point
    return None


class Quarantine:
    """Deaths of replicas by version of the model and digest of the scan's file; the oldest entries are dropped.

    A scan is refused for an hour, after which its deaths are counted anew.

    Args:
        clock: returns a monotonic time in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._deaths: OrderedDict[tuple[str, str], list[str]] = OrderedDict()
        # Scan -> why it is refused, and until when.
        self._refused: OrderedDict[tuple[str, str], tuple[str, float]] = OrderedDict()
        self._one_at_a_time = asyncio.Lock()

    def require_harmless(self, model: str, digest: str) -> None:
        """Check that a scan may be processed.

        Raises:
            DataError: it has killed replicas within the last hour.
        """
        reason, until = self._refused.get((model, digest), ("", 0.0))
        if not reason:
            return
        if self._clock() < until:
            raise DataError(
                "this scan crashes the process of the model and is not retried",
                where="upload",
                found=reason,
                do="report the instance of this response to the server's operator; export the scan again, or send "
                "it again after an hour",
            )
        del self._refused[model, digest]

    @asynccontextmanager
    async def suspicion(self, model: str, digest: str) -> AsyncIterator[None]:
        """Within an `async with` block, process a scan; suspects are processed one at a time."""
        if (model, digest) not in self._deaths:
            yield
            return
        async with self._one_at_a_time:
            yield

    def record_death(self, model: str, digest: str, point: str) -> None:
        """Record that a replica died while it processed a scan at a point."""
        key = model, digest
        points = self._deaths.setdefault(key, [])
        points.append(point)
        if points.count(point) >= _AT_ONE_POINT:
            self._refuse(key, f"{_AT_ONE_POINT} replicas died at the same point: {point}")
        elif len(points) >= _AT_ANY:
            self._refuse(key, f"{_AT_ANY} replicas died while processing it")
        _trim(self._deaths)

    def record_success(self, model: str, digest: str) -> None:
        """Record that a scan was processed."""
        self._deaths.pop((model, digest), None)

    def _refuse(self, key: tuple[str, str], reason: str) -> None:
        del self._deaths[key]
        self._refused[key] = reason, self._clock() + _REFUSED_S
        _trim(self._refused)


def _trim(entries: OrderedDict[tuple[str, str], Any]) -> None:
    while len(entries) > _MOST_SCANS:
        entries.popitem(last=False)
