"""Cost of a contestant of the accuracy benchmark in seconds and CPU seconds, also of an interrupted training.

Used in both environments, so only the standard library is imported.
"""

from __future__ import annotations

import json
import os
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def measured(stage: Callable[..., dict[str, Any] | None], *given: Any) -> dict[str, Any]:
    """Return the result of a stage with its seconds and CPU seconds, unless it measures its own, and the mean load."""
    began, used = time.perf_counter(), cpu_s()
    told = stage(*given) or {}
    spent = {"seconds": time.perf_counter() - began, "cpu_s": cpu_s() - used}
    return {**spent, "load": os.getloadavg()[0], **told}


def cpu_s() -> float:
    """CPU seconds of this process and of its running and ended children."""
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in usage) + _running_children_s()


def _running_children_s() -> float:
    """CPU seconds of running descendants, which the kernel adds to their parent only when they have ended."""
    ticks: dict[int, int] = {}
    parent: dict[int, int] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            # The name in parentheses may contain anything; the fields after it are numbers.
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        parent[int(folder.name)] = int(fields[1])
        ticks[int(folder.name)] = sum(map(int, fields[11:15]))
    below: set[int] = set()
    reached = {os.getpid()}
    while reached:
        reached = {child for child, of in parent.items() if of in reached}
        below |= reached
    return sum(ticks[child] for child in below) / _TICKS_PER_S


class EpochClock:
    """Seconds and CPU seconds per epoch, in a file, so that an interrupted training reports its cost without the pause.

    Args:
        file: where they are stored. An epoch that is stored already is not counted again, because it is repeated or
            reported again.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._spent: dict[str, list[float]] = json.loads(file.read_text()) if file.exists() else {}
        self._mark()

    def epoch(self, number: int, at_least_s: float = 0.0) -> None:
        """Record the end of an epoch.

        Args:
            number: number of the epoch.
            at_least_s: seconds by another measurement, for an epoch whose end was not recorded before an interruption.
        """
        if str(number) not in self._spent:
            self._spent[str(number)] = [max(at_least_s, time.perf_counter() - self._began), cpu_s() - self._used]
            whole = self._file.with_suffix(".partial")
            whole.write_text(json.dumps(self._spent))
            whole.replace(self._file)
        self._mark()

    def total(self) -> dict[str, float]:
        """Return the sum of all epochs and of the time after the last."""
        seconds, used = (sum(column) for column in zip(*self._spent.values(), strict=True))
        return {
            "seconds": seconds + time.perf_counter() - self._began,
            "cpu_s": used + cpu_s() - self._used,
        }

    def _mark(self) -> None:
        self._began, self._used = time.perf_counter(), cpu_s()
