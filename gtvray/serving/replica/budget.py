"""Memory budget of a replica for the scans in progress, with a share reserved for small scans."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from gtvray.errors import TooLargeError

# Share of the memory that is reserved for small scans, and share of that reserve up to which a scan counts as small.
_RESERVED_SHARE = 1 / 4
_SMALL_SHARE = 1 / 4


class MemoryBudget:
    """Grant memory to scans in progress; scans that do not fit wait, large and small ones in separate queues.

    Args:
        total_bytes: memory for all scans together.

    Attributes:
        largest_bytes: memory that one scan may use at most.
        held_bytes: memory currently granted.
    """

    def __init__(self, total_bytes: int) -> None:
        reserved = int(total_bytes * _RESERVED_SHARE)
        self._total, self._small = total_bytes, int(reserved * _SMALL_SHARE)
        self.largest_bytes = total_bytes - reserved
        self.held_bytes = self._held_by_large = 0
        self._waiting: dict[bool, deque[tuple[int, asyncio.Future[None]]]] = {True: deque(), False: deque()}

    def is_small(self, count: int) -> bool:
        """Whether a scan that needs `count` bytes may use the share reserved for small scans."""
        return count <= self._small

    @asynccontextmanager
    async def hold(self, count: int) -> AsyncIterator[None]:
        """Hold `count` bytes of memory within an `async with` block; waits until they are free.

        Raises:
            TooLargeError: it is more than one scan may use.
        """
        if count > self.largest_bytes:
            raise TooLargeError(
                "the scan takes too much memory",
                expected=f"at most {self.largest_bytes / 1e9:.2f} GB",
                found=f"{count / 1e9:.2f} GB",
            )
        small = self.is_small(count)
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[small].append((count, turn))
        self._grant()
        try:
            await turn
            yield
        finally:
            if turn.done() and not turn.cancelled():
                self._take(-count, small)
            self._grant()

    def _grant(self) -> None:
        """Grant memory to waiting scans, first in, first out within each queue."""
        for small, queue in self._waiting.items():
            while queue and (queue[0][1].cancelled() or self._fits(queue[0][0], small)):
                count, turn = queue.popleft()
                if not turn.cancelled():
                    self._take(count, small)
                    turn.set_result(None)

    def _fits(self, count: int, small: bool) -> bool:
        if self.held_bytes + count > self._total:
            return False
        return small or self._held_by_large + count <= self.largest_bytes

    def _take(self, count: int, small: bool) -> None:
        self.held_bytes += count
        if not small:
            self._held_by_large += count
