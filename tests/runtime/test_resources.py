"""Number of concurrent trials on a cluster: a worker fits on one node or not at all."""

from __future__ import annotations

from typing import Any

import pytest

from gtvray.config import TrainingConfig
from gtvray.errors import ResourceError
from gtvray.runtime import Needs, Node, plan_trials


@pytest.mark.parametrize(
    ("training", "nodes", "wanted", "planned"),
    [
        ({}, [Node(4, 0)], None, (4, Needs(1))),
        ({}, [Node(4, 0)], 3, (3, Needs(1))),
        ({}, [Node(2, 0)], 8, (2, Needs(1))),
        ({"cpus_per_worker": 3}, [Node(8, 0)], None, (2, Needs(3))),
        # 3 CPUs fit once on each node of 4, although all nodes together have 16.
        ({"cpus_per_worker": 3}, [Node(4, 0, count=4)], None, (4, Needs(3))),
        ({"num_workers": 2, "cpus_per_worker": 2}, [Node(9, 0)], None, (2, Needs(2))),
        # The two workers of a training may be on different nodes.
        ({"num_workers": 2, "cpus_per_worker": 2}, [Node(2, 0), Node(3, 0)], None, (1, Needs(2))),
        # A head without CPUs takes no worker.
        ({"use_gpu": True}, [Node(0, 0), Node(16, 2)], None, (2, Needs(1, 1))),
        # Trials that share GPUs; 0.1 is not exact in binary.
        ({"use_gpu": True, "gpus_per_worker": 0.5}, [Node(16, 1)], None, (2, Needs(1, 0.5))),
        ({"use_gpu": True, "gpus_per_worker": 0.1}, [Node(16, 1)], None, (10, Needs(1, 0.1))),
        # The remainders of two GPUs cannot be combined.
        ({"use_gpu": True, "gpus_per_worker": 0.6}, [Node(16, 2)], None, (2, Needs(1, 0.6))),
        ({"use_gpu": True, "num_workers": 2}, [Node(16, 3)], None, (1, Needs(1, 1))),
        ({"use_gpu": True, "cpus_per_worker": 8}, [Node(16, 4)], None, (2, Needs(8, 1))),
    ],
)
def test_number_of_concurrent_trials(
    training: dict[str, Any], nodes: list[Node], wanted: int | None, planned: tuple[int, Needs]
) -> None:
    plan = plan_trials(TrainingConfig(**training), nodes, wanted)
    assert (plan.concurrent, plan.needs) == planned
    assert plan.fits_now


def test_memory_limits_the_number_of_trials() -> None:
    nodes = [Node(8, 0, memory_bytes=10e9), Node(8, 0, memory_bytes=3e9)]
    assert plan_trials(TrainingConfig(), nodes, None, memory_bytes=4_000_000_000).concurrent == 2
    with pytest.raises(ResourceError) as caught:
        plan_trials(TrainingConfig(), nodes, None, memory_bytes=12_000_000_000)
    assert "take memory" in caught.value.fields["do"]
    assert "12.0 GB" in caught.value.fields["expected"]


@pytest.mark.parametrize(
    ("training", "nodes", "do"),
    [
        ({"cpus_per_worker": 6}, [Node(2, 0, count=4)], "lower training.cpus_per_worker"),
        ({"num_workers": 3}, [Node(2, 0)], "lower training.num_workers"),
        ({"use_gpu": True}, [Node(8, 0)], "training.use_gpu=false"),
        ({}, [], "add a larger node"),
    ],
)
def test_trial_that_fits_on_no_node_is_refused(training: dict[str, Any], nodes: list[Node], do: str) -> None:
    with pytest.raises(ResourceError, match="does not fit on this cluster") as caught:
        plan_trials(TrainingConfig(**training), nodes, None)
    assert do in caught.value.fields["do"]
    assert len(str(caught.value).splitlines()) <= 5


def test_nodes_that_an_autoscaler_can_start_count() -> None:
    """A cluster that scales from zero: a head without CPUs, and groups of nodes that are not there yet."""
    growth = [Node(8, 1, memory_bytes=64e9, count=3), Node(2, 0)]
    plan = plan_trials(TrainingConfig(use_gpu=True), [Node(0, 0)], None, memory_bytes=8_000_000_000, growth=growth)
    assert (plan.concurrent, plan.fits_now) == (3, False)
    with pytest.raises(ResourceError) as caught:
        plan_trials(TrainingConfig(cpus_per_worker=16), [Node(0, 0)], None, growth=growth)
    assert "the autoscaler can provide 3 x (8 CPUs, 1 GPUs, 64.0 GB)" in caught.value.fields["found"]
