"""Top-k: every trial trains for a few epochs, then the best k to the end.

Egele et al., "Is One Epoch All You Need For Multi-Fidelity Hyperparameter Optimization?" (ESANN 2023, arXiv
2307.15422), report results on par with Hyperband at a fraction of its compute.
"""

from __future__ import annotations

from gtvray.tuning.schedulers.waiting import Verdict


class TopKRule:
    """The rule of top-k: the trials with the best values at one rung continue.

    Args:
        rung: epochs that every trial trains for.
        keep: number of trials that continue.
    """

    def __init__(self, rung: int, keep: int) -> None:
        self._rung, self._keep = rung, keep
        self._values: dict[str, float] = {}

    def report(self, trial: str, epoch: int, value: float) -> Verdict:
        """Return the verdict on a trial after an epoch."""
        if epoch != self._rung:
            return "continue"
        self._values[trial] = value
        return "wait"

    def release(self, waiting: list[str], last: bool) -> tuple[list[str], list[str]]:
        """Return the best trials to continue once all wait, and the others to stop."""
        if not last or not waiting:
            return [], []
        best = sorted(waiting, key=lambda trial: (-self._values[trial], trial))[: self._keep]
        return best, [trial for trial in waiting if trial not in best]
