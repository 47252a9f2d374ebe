"""Number of concurrent trials on a cluster."""

from __future__ import annotations

from typing import Any

import pytest

from gtvray.config import TrainingConfig
from gtvray.errors import ResourceError
from gtvray.runtime import plan_trials


@pytest.mark.parametrize(
    ("training", "cpus", "gpus", "wanted", "planned"),
    [
        ({}, 4, 0, None, (4, 1, 0)),
        ({}, 4, 0, 3, (3, 1, 0)),
        ({}, 2, 0, 8, (2, 1, 0)),
        ({"cpus_per_worker": 3}, 8, 0, None, (2, 3, 0)),
        ({"num_workers": 2, "cpus_per_worker": 2}, 9, 0, None, (2, 4, 0)),
        ({"use_gpu": True}, 16, 2, None, (2, 1, 1)),
        # Trials that share GPUs; 0.1 is not exact in binary.
        ({"use_gpu": True, "gpus_per_worker": 0.5}, 16, 1, None, (2, 1, 0.5)),
        ({"use_gpu": True, "gpus_per_worker": 0.1}, 16, 1, None, (10, 1, 0.1)),
        ({"use_gpu": True, "num_workers": 2}, 16, 3, None, (1, 2, 2)),
        ({"use_gpu": True, "cpus_per_worker": 8}, 16, 4, None, (2, 8, 1)),
    ],
)
def test_number_of_concurrent_trials(
    training: dict[str, Any], cpus: float, gpus: float, wanted: int | None, planned: tuple[float, float, float]
) -> None:
    plan = plan_trials(TrainingConfig(**training), cpus, gpus, wanted)
    assert (plan.concurrent, plan.cpus_per_trial, plan.gpus_per_trial) == planned


@pytest.mark.parametrize(
    ("training", "cpus", "gpus"),
    [({"cpus_per_worker": 3}, 2, 0), ({"num_workers": 3}, 2, 0), ({"use_gpu": True}, 8, 0)],
)
def test_trial_that_does_not_fit_is_rejected(training: dict[str, Any], cpus: float, gpus: float) -> None:
    with pytest.raises(ResourceError) as caught:
        plan_trials(TrainingConfig(**training), cpus, gpus, None)
    assert f"{cpus} CPUs and {gpus} GPUs" in caught.value.fields["found"]
    assert len(str(caught.value).splitlines()) <= 5
