"""The load of a replica, as it reports to the autoscaling policy."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from gtvray.serving.replica.scheduler import Network, PatchScheduler

# Names of the reported metrics.
QUEUED_S, SCANS = "queued_s", "scans"


class _Expected:
    """Number of patches of a scan that are not in the scheduler yet."""

    patches = 0


class Load:
    """The scans on a replica, and the seconds that their patches will take.

    Args:
        scheduler: scheduler of the replica.
        network: network whose time per patch is assumed for scans that have not reached the scheduler.
    """

    def __init__(self, scheduler: PatchScheduler, network: Network) -> None:
        self._scheduler, self._network = scheduler, network
        self._scans: set[_Expected] = set()

    @contextmanager
    def scan(self) -> Iterator[_Expected]:
        """Count a scan within a `with` block; its `patches` are those that are not in the scheduler yet."""
        expected = _Expected()
        self._scans.add(expected)
        try:
            yield expected
        finally:
            self._scans.remove(expected)

    def stats(self) -> dict[str, float]:
        """Return the number of scans, and the estimated seconds of their patches that have not been started."""
        expected = sum(scan.patches for scan in self._scans)
        return {
            SCANS: float(len(self._scans)),
            QUEUED_S: self._scheduler.queued_s + expected * self._network.patch_s,
        }
