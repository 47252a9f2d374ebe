"""PASHA: successive halving whose highest rung rises only while the ranking of trials still changes.

After Bohdal et al., "PASHA: Efficient HPO and NAS with Progressive Resource Allocation" (ICLR 2023, arXiv 2207.06940).
Trials wait at the highest rung; when the order of the best there differs from their order one rung below by more than
the noise, the next rung is opened. At the end the best waiting trial trains to the last epoch.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np

from gtvray.tuning.schedulers.waiting import Verdict

# Values that differ by less than this percentile of the differences between crossing curves count as equal.
_NOISE_PERCENTILE = 90


class PashaRule:
    """The rule of PASHA: decides which trials continue, from their values at the rungs.

    Args:
        rungs: epochs of the rungs, in order, below the last epoch.
        reduction_factor: one in this many trials continues at each rung.
    """

    def __init__(self, rungs: Sequence[int], reduction_factor: int) -> None:
        self._rungs, self._factor = list(rungs), reduction_factor
        self._values: list[dict[str, float]] = [{} for _ in rungs]
        self._curves: dict[str, dict[int, float]] = {}
        self.highest = min(1, len(self._rungs) - 1)
        self._at: dict[str, int] = {}
        self._final = False

    def report(self, trial: str, epoch: int, value: float) -> Verdict:
        """Return the verdict on a trial after an epoch."""
        self._curves.setdefault(trial, {})[epoch] = value
        if epoch not in self._rungs or self._final:
            return "continue"
        rung = self._rungs.index(epoch)
        self._values[rung][trial] = value
        self._at[trial] = rung
        if rung < self.highest:
            return "continue" if self._promotable(trial, rung) else "wait"
        if rung == self.highest and self._unstable():
            self.highest = min(self.highest + 1, len(self._rungs) - 1)
        return "wait"

    def release(self, waiting: list[str], last: bool) -> tuple[list[str], list[str]]:
        """Return waiting trials that are among the best of their rung now; at the end, the best one and the rest."""
        go = [trial for trial in waiting if self._at[trial] < self.highest and self._promotable(trial, self._at[trial])]
        if go or not last or not waiting:
            return go, []
        # Of the trials that went furthest, the best one is trained to the end.
        best = max(waiting, key=lambda trial: (self._at[trial], self._values[self._at[trial]][trial]))
        self._final = True
        return [best], [trial for trial in waiting if trial != best]

    def _promotable(self, trial: str, rung: int) -> bool:
        """Whether a trial is among the best of a rung; the first ones of a rung are not, as nothing is known yet."""
        values = self._values[rung]
        number = len(values) // self._factor
        best = sorted(values, key=lambda name: (-values[name], name))[:number]
        return trial in best

    def _unstable(self) -> bool:
        """Whether the trials of the highest rung are in another order there than one rung below."""
        if self.highest == 0:
            return len(self._values[0]) > 1
        upper, lower = self._values[self.highest], self._values[self.highest - 1]
        shared = [trial for trial in upper if trial in lower]
        noise = self._noise()
        return any(
            (upper[one] - upper[other]) * (lower[one] - lower[other]) < 0 and abs(lower[one] - lower[other]) > noise
            for index, one in enumerate(shared)
            for other in shared[index + 1 :]
        )

    def _noise(self) -> float:
        """Return the noise level: a percentile of the differences between trials whose curves cross at least twice."""
        found = []
        names = list(self._values[self.highest])
        for index, one in enumerate(names):
            for other in names[index + 1 :]:
                epochs = sorted(self._curves[one].keys() & self._curves[other].keys())
                differences = [self._curves[one][epoch] - self._curves[other][epoch] for epoch in epochs]
                signs = [math.copysign(1, difference) for difference in differences if difference]
                crossings = sum(first != second for first, second in itertools.pairwise(signs))
                if crossings > 1:
                    found.append(abs(differences[-1]))
        return float(np.percentile(found, _NOISE_PERCENTILE)) if found else 0.0
