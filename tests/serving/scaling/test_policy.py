"""The autoscaling policy: replicas by queued seconds and scans, and the metrics that a replica reports."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from ray.serve.config import AutoscalingPolicy

from gtvray.config import ServingConfig, load_config
from gtvray.errors import ConfigError
from gtvray.inference import Patch
from gtvray.serving.replica.scheduler import Network, PatchScheduler
from gtvray.serving.scaling import Load, PatchSecondsPolicy, scaling_options


@dataclass
class Point:
    value: float


@dataclass
class Context:
    """The context that Serve passes to a policy."""

    current_num_replicas: int
    target_num_replicas: int
    raw_metrics: dict[str, dict[str, list[Point]]] | None


def context(*replicas: tuple[float, float], target: int = 1) -> Any:
    """Make a context from (scans, queued seconds) of each replica; older points have other values."""
    names = ("scans", "queued_s")
    metrics = {
        name: {f"r{n}": [Point(99.0), Point(each[at])] for n, each in enumerate(replicas)}
        for at, name in enumerate(names)
    }
    return Context(len(replicas), target, metrics if replicas else {})


@pytest.mark.parametrize(
    ("replicas", "expected"),
    [
        ([(0, 0.0)], 0),
        ([(0, 0.0), (0, 0.0)], 0),
        ([(1, 0.0)], 1),
        ([(1, 500.0)], 1),
        ([(4, 9.0)], 1),
        ([(4, 11.0)], 2),
        ([(4, 25.0), (1, 6.0)], 4),
        ([(2, 25.0), (1, 60.0)], 3),
    ],
)
def test_replicas_by_queued_seconds_and_never_more_than_scans(
    replicas: list[tuple[float, float]], expected: int
) -> None:
    assert PatchSecondsPolicy(10.0)(context(*replicas)) == (expected, {})


def test_number_stays_while_nothing_is_reported() -> None:
    policy = PatchSecondsPolicy(10.0)
    assert policy(context(target=3))[0] == 3
    starting: Any = Context(2, 2, None)
    assert policy(starting)[0] == 2


def test_serve_accepts_the_policy() -> None:
    """It is sent to Serve's controller by value."""
    config = scaling_options(ServingConfig(model_replicas=0, max_model_replicas=3, replica_idle_s=7))[
        "autoscaling_config"
    ]
    assert (config.min_replicas, config.initial_replicas, config.max_replicas) == (0, 1, 3)
    assert config.downscale_delay_s == 7
    copy = AutoscalingPolicy.from_serialized_policy_def(
        config.policy.model_dump(), config.policy.get_serialized_policy_def()
    )
    assert callable(copy.get_policy())
    assert scaling_options(ServingConfig(model_replicas=2)) == {"num_replicas": 2}


@pytest.mark.parametrize(
    "settings", ["model_replicas=0", "max_model_replicas=0", "model_replicas=3 max_model_replicas=2"]
)
def test_invalid_numbers_of_replicas_are_refused(settings: str) -> None:
    with pytest.raises(ConfigError, match="max_model_replicas"):
        load_config(None, [f"serving.{each}" for each in settings.split()])


class Patches:
    """A job of patches."""

    def __init__(self, count: int) -> None:
        self.remaining = count

    def take(self) -> Patch:
        self.remaining -= 1
        return Patch(self.remaining, np.zeros((1, 1, 1, 1), np.float32))

    def put(self, number: int, logits: NDArray[np.float32]) -> None: ...


def test_replica_reports_scans_and_their_seconds() -> None:
    async def run() -> list[dict[str, float]]:
        found: list[dict[str, float]] = []

        def forward(channels: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
            found.append(load.stats())
            return np.stack([patch[0] for patch in channels])

        scheduler, network = PatchScheduler(), Network(forward, 2)
        load = Load(scheduler, network)
        # Before the first batch has been timed, a patch counts as half a second.
        with load.scan() as waiting, load.scan():
            waiting.patches = 10
            await scheduler.run(Patches(2), network)
            waiting.patches = 0
        return [*found, load.stats()]

    during, after = asyncio.run(run())
    assert during == {"scans": 2.0, "queued_s": 5.0}
    assert after == {"scans": 0.0, "queued_s": 0.0}
