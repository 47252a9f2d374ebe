"""The pointer to the served version: a small file that the version manager writes and the gateways read.

The file is on the same storage as the bundles, readable from every node, and survives the death of every process.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from gtvray.errors import InputError
from gtvray.io import read_json, write_json


@dataclass(frozen=True)
class ServedVersion:
    """A version with the Serve application that runs it.

    Attributes:
        app: name of the Serve application.
        version: number in the registry.
        digest: digest of the bundle.
    """

    app: str
    version: str
    digest: str


@dataclass(frozen=True)
class RejectedVersion:
    """A version that could not be served.

    Attributes:
        version: number in the registry.
        digest: digest of the bundle.
        reason: why it is not served.
        at: UTC time, ISO 8601.
    """

    version: str
    digest: str
    reason: str
    at: str


@dataclass(frozen=True)
class Versions:
    """The endpoint's versions.

    Attributes:
        current: the version that new requests go to; None before the first one is ready.
        loading: the version that is being started and checked; None if there is none.
        rejected: versions that could not be served, newest last.
        problem: why the champion of the registry could not be followed; empty if it could.
    """

    current: ServedVersion | None = None
    loading: ServedVersion | None = None
    rejected: tuple[RejectedVersion, ...] = field(default=())
    problem: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


class Pointer:
    """Reader and writer of the file; reading costs one `stat` while it is unchanged.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stamp: tuple[int, int] | None = None
        self._versions = Versions()

    def read(self) -> Versions:
        """Return the versions; those read last if the file cannot be read."""
        try:
            stat = self._path.stat()
            stamp = (stat.st_mtime_ns, stat.st_ino)
            if stamp != self._stamp:
                self._versions, self._stamp = _parse(read_json(self._path)), stamp
        except (OSError, InputError, TypeError, KeyError):
            # The file is replaced atomically, so this is a file system error: keep serving the known version.
            pass
        return self._versions

    def write(self, versions: Versions) -> None:
        """Replace the file atomically."""
        write_json(self._path, versions.as_dict())


def _parse(stored: dict[str, Any]) -> Versions:
    return Versions(
        current=ServedVersion(**stored["current"]) if stored["current"] else None,
        loading=ServedVersion(**stored["loading"]) if stored["loading"] else None,
        rejected=tuple(RejectedVersion(**each) for each in stored["rejected"]),
        problem=stored["problem"],
    )
