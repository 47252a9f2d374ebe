"""The memory of a replica for the scans that it processes at once, with a share reserved for small ones."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from gtvray.errors import TooLargeError

# Of the memory, what large scans leave to small ones; and of that, what a scan may take to count as small.
_RESERVED_SHARE = 1 / 4
_SMALL_SHARE = 1 / 4


class MemoryBudget:
    """Scans hold memory while they are processed; those that do not fit wait, large and small ones in separate queues.

    Args:
        total_bytes: for all scans at once.

    Attributes:
        largest_bytes: that one scan may take.
        held_bytes: of all scans at the moment.
    """

    def __init__(self, total_bytes: int) -> None:
        reserved = int(total_bytes * _RESERVED_SHARE)
        self._total, self._small = total_bytes, int(reserved * _SMALL_SHARE)
        self.largest_bytes = total_bytes - reserved
        self.held_bytes = self._held_by_large = 0
        self._waiting: dict[bool, deque[tuple[int, asyncio.Future[None]]]] = {True: deque(), False: deque()}

    def is_small(self, count: int) -> bool:
        """Whether a scan of so many bytes uses the share that is reserved for small ones."""
        return count <= self._small

    @asynccontextmanager
    async def hold(self, count: int) -> AsyncIterator[None]:
        """Hold memory within an `async with` block; waits until it is free.

        Raises:
            TooLargeError: it would never be.
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
        """Let waiting scans proceed, each queue in its order."""
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
