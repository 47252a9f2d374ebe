"""Which scans kill replicas: those that were being processed at the same point when two replicas died.

A replica that dies takes all requests on it along. Most of them only waited there, and are sent to another replica as
if nothing had happened. Those that were being processed are suspects: they are repeated one at a time, so that the next
death shows which of them causes it, and the others complete.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from gtvray.errors import DataError

_Result = TypeVar("_Result")
# Deaths at one point, and at any points, after which a scan is refused.
_AT_ONE_POINT, _AT_ANY = 2, 5
_MOST_SCANS = 10_000
_LINE_BYTES = 32
_WAITING = "waiting"


class Journal:
    """What a replica is doing with a scan, in a file that survives its death.

    A batch that runs when its scan is cancelled ends after the journal is closed; what it writes then is dropped.

    Args:
        path: of the file.
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
        """A function that records a point while it runs."""

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
    """Read a journal: the point at which the scan was being processed; None if it only waited, or nothing is known."""
    with suppress(OSError):
        point = path.read_bytes().decode().strip()
        return None if point in ("", _WAITING) else point
    return None


class Quarantine:
    """Scans by the model that processes them and the digest of their file; the oldest are forgotten."""

    def __init__(self) -> None:
        self._deaths: OrderedDict[tuple[str, str], list[str]] = OrderedDict()
        self._refused: OrderedDict[tuple[str, str], str] = OrderedDict()
        self._one_at_a_time = asyncio.Lock()

    def require_harmless(self, model: str, digest: str) -> None:
        """Check that a scan may be processed.

        Raises:
            DataError: it has killed replicas.
        """
        reason = self._refused.get((model, digest))
        if reason is not None:
            raise DataError(
                "this scan ends the process of the model and is not tried again",
                where="upload",
                found=reason,
                do="export the scan again; report the instance of this response to the server's operator",
            )

    @asynccontextmanager
    async def suspicion(self, model: str, digest: str) -> AsyncIterator[None]:
        """Process a scan within an `async with` block, alone among the suspects if it is one."""
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
            self._refuse(key, f"{_AT_ONE_POINT} replicas died at the same point of it: {point}")
        elif len(points) >= _AT_ANY:
            self._refuse(key, f"{_AT_ANY} replicas died while they processed it")
        _trim(self._deaths)

    def record_success(self, model: str, digest: str) -> None:
        """Record that a scan was processed."""
        self._deaths.pop((model, digest), None)

    def _refuse(self, key: tuple[str, str], reason: str) -> None:
        del self._deaths[key]
        self._refused[key] = reason
        _trim(self._refused)


def _trim(entries: OrderedDict[tuple[str, str], Any]) -> None:
    while len(entries) > _MOST_SCANS:
        entries.popitem(last=False)
