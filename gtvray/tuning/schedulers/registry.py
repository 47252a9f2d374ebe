"""The registry of schedulers.

To add one, write a function that builds it, add its name to `SchedulerConfig.kind` and the function to `SCHEDULERS`;
`tests/tuning/test_schedulers.py` then covers it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, TrialScheduler

from gtvray.config import SweepConfig
from gtvray.tracking import TrialRecord
from gtvray.tuning.schedulers.halving import SeededHyperBand, SteadyMedian
from gtvray.tuning.schedulers.pasha import PashaRule
from gtvray.tuning.schedulers.pbt import RecordedPbt
from gtvray.tuning.schedulers.recorded import RecordedScheduler
from gtvray.tuning.schedulers.top_k import TopKRule
from gtvray.tuning.schedulers.waiting import WaitingScheduler
from gtvray.tuning.searchers.base import METRIC
from gtvray.tuning.space import Space

MODE, TIME = "max", "epoch"
_BRACKETS = 3


@dataclass(frozen=True)
class Setting:
    """Inputs for building a scheduler.

    Attributes:
        sweep: settings of the sweep.
        space: its search space.
        epochs: epochs of a full training.
        record: record of the sweep.
        exhausted: returns whether no further trial will start.
    """

    sweep: SweepConfig
    space: Space
    epochs: int
    record: TrialRecord
    exhausted: Callable[[], bool]

    @property
    def rungs(self) -> list[int]:
        """Epochs at which a trial may be stopped."""
        return self.sweep.scheduler.rungs(self.epochs)


def _none(setting: Setting) -> TrialScheduler:
    return FIFOScheduler()


def _asha(setting: Setting) -> TrialScheduler:
    return AsyncHyperBandScheduler(**_halving(setting))


def _hyperband(setting: Setting) -> TrialScheduler:
    brackets = max(1, min(_BRACKETS, len(setting.rungs)))
    return SeededHyperBand(setting.sweep.seed, brackets=brackets, **_halving(setting))


def _median(setting: Setting) -> TrialScheduler:
    grace = setting.sweep.scheduler.grace_epochs
    return SteadyMedian(time_attr=TIME, metric=METRIC, mode=MODE, grace_period=grace, min_samples_required=3)


def _pasha(setting: Setting) -> TrialScheduler:
    rule = PashaRule(setting.rungs, setting.sweep.scheduler.reduction_factor)
    return WaitingScheduler(rule, setting.epochs, setting.exhausted)


def _top_k(setting: Setting) -> TrialScheduler:
    rule = TopKRule(setting.rungs[0] if setting.rungs else setting.epochs, setting.sweep.scheduler.keep)
    return WaitingScheduler(rule, setting.epochs, setting.exhausted)


def _pbt(setting: Setting) -> TrialScheduler:
    return RecordedPbt(setting.sweep, setting.space, setting.record)


def _halving(setting: Setting) -> dict[str, object]:
    return {
        "time_attr": TIME,
        "metric": METRIC,
        "mode": MODE,
        "max_t": setting.epochs,
        "grace_period": min(setting.sweep.scheduler.grace_epochs, setting.epochs),
        "reduction_factor": setting.sweep.scheduler.reduction_factor,
    }


SCHEDULERS: Mapping[str, Callable[[Setting], TrialScheduler]] = {
    "asha": _asha,
    "hyperband": _hyperband,
    "median": _median,
    "pasha": _pasha,
    "top_k": _top_k,
    "pbt": _pbt,
    "none": _none,
}


def build_scheduler(setting: Setting, unfinished: Sequence[str]) -> RecordedScheduler:
    """Return the scheduler of a sweep, which continues with the results of the record.

    Args:
        setting: what it is built from.
        unfinished: ids of the trials of the record that continue.
    """
    return RecordedScheduler(SCHEDULERS[setting.sweep.scheduler.kind](setting), setting.record, unfinished)
