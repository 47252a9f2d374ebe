"""What a contestant of the accuracy figure costs: seconds and CPU seconds, also of a training that was cut off.

In both environments, so nothing but the standard library is imported.
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
    """What a stage returns, with its seconds and CPU seconds unless it tells its own; and the machine's mean load."""
    began, used = time.perf_counter(), cpu_s()
    told = stage(*given) or {}
    spent = {"seconds": time.perf_counter() - began, "cpu_s": cpu_s() - used}
    return {**spent, "load": os.getloadavg()[0], **told}


def cpu_s() -> float:
    """CPU seconds of this process and of its children, those that run and those that have ended."""
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in usage) + _running_children_s()


def _running_children_s() -> float:
    """Of all processes below this one: the kernel counts a child for its parent only once it has ended."""
    ticks: dict[int, int] = {}
    parent: dict[int, int] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            # The name, in brackets, may hold anything; the fields after it are numbers.
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
    """Seconds and CPU seconds of a training by epoch, kept in a file, so that one cut off tells what it costs uncut.

    Args:
        file: where they are kept. An epoch that is there already is not counted again: it is done a second time, or
            told of again.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._spent: dict[str, list[float]] = json.loads(file.read_text()) if file.exists() else {}
        self._mark()

    def epoch(self, number: int, at_least_s: float = 0.0) -> None:
        """An epoch has ended.

        Args:
            number: of the epoch.
            at_least_s: seconds it took by another count; of one whose end was not written down before a cut.
        """
        if str(number) not in self._spent:
            self._spent[str(number)] = [max(at_least_s, time.perf_counter() - self._began), cpu_s() - self._used]
            whole = self._file.with_suffix(".partial")
            whole.write_text(json.dumps(self._spent))
            whole.replace(self._file)
        self._mark()

    def total(self) -> dict[str, float]:
        """All epochs, and what came after the last."""
        seconds, used = (sum(column) for column in zip(*self._spent.values(), strict=True))
        return {
            "seconds": seconds + time.perf_counter() - self._began,
            "cpu_s": used + cpu_s() - self._used,
        }

    def _mark(self) -> None:
        self._began, self._used = time.perf_counter(), cpu_s()
