"""The registry of schedulers.

To add one, write a function that builds it, add its name to `SchedulerConfig.kind` and the function to `SCHEDULERS`;
`tests/tuning/test_schedulers.py` then covers it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, TrialScheduler

from gtvray.config import SweepConfig
from gtvray.tracking import TrialRecord
from gtvray.tuning.schedulers.recorded import RecordedScheduler
from gtvray.tuning.searchers.base import METRIC
from gtvray.tuning.space import Space

MODE, TIME = "max", "epoch"


def _none(sweep: SweepConfig, space: Space, epochs: int) -> TrialScheduler:
    return FIFOScheduler()


def _asha(sweep: SweepConfig, space: Space, epochs: int) -> TrialScheduler:
    return AsyncHyperBandScheduler(
        time_attr=TIME,
        metric=METRIC,
        mode=MODE,
        max_t=epochs,
        grace_period=min(sweep.scheduler.grace_epochs, epochs),
        reduction_factor=sweep.scheduler.reduction_factor,
    )


# Settings of the sweep, its space and the epochs of a full training to a scheduler.
SCHEDULERS: Mapping[str, Callable[[SweepConfig, Space, int], TrialScheduler]] = {"asha": _asha, "none": _none}


def build_scheduler(
    sweep: SweepConfig, space: Space, epochs: int, record: TrialRecord, unfinished: Sequence[str]
) -> TrialScheduler:
    """Return the scheduler of a sweep, which continues with the results of the record.

    Args:
        sweep: settings of the sweep.
        space: its search space.
        epochs: epochs of a full training.
        record: record of the sweep.
        unfinished: ids of its trials that continue.
    """
    return RecordedScheduler(SCHEDULERS[sweep.scheduler.kind](sweep, space, epochs), record, unfinished)
