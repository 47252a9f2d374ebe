"""Trials that fit side by side, and ports that are free."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from gtvray.config import TrainingConfig
from gtvray.errors import ResourceError
from gtvray.runtime import plan_trials, port_is_free, require_port


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
def test_trials_side_by_side(
    training: dict[str, Any], cpus: float, gpus: float, wanted: int | None, planned: tuple[float, float, float]
) -> None:
    plan = plan_trials(TrainingConfig(**training), cpus, gpus, wanted)
    assert (plan.concurrent, plan.cpus_per_trial, plan.gpus_per_trial) == planned


@pytest.mark.parametrize(
    ("training", "cpus", "gpus"),
    [({"cpus_per_worker": 3}, 2, 0), ({"num_workers": 3}, 2, 0), ({"use_gpu": True}, 8, 0)],
)
def test_a_trial_that_does_not_fit_is_refused_with_figures(training: dict[str, Any], cpus: float, gpus: float) -> None:
    with pytest.raises(ResourceError) as caught:
        plan_trials(TrainingConfig(**training), cpus, gpus, None)
    assert f"{cpus} CPUs and {gpus} GPUs" in caught.value.fields["found"]
    assert len(str(caught.value).splitlines()) <= 5


def test_a_taken_port_is_refused() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert not port_is_free("127.0.0.1", port)
        with pytest.raises(ResourceError) as caught:
            require_port("127.0.0.1", port, "--port")
        assert str(port) in caught.value.fields["where"]
        assert "--port" in caught.value.fields["do"]
    assert port_is_free("127.0.0.1", port)
    require_port("127.0.0.1", port, "--port")


def test_a_port_whose_last_connection_is_still_closing_is_free() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)):
            # The side that closes first waits.
            server.accept()[0].close()
    assert port_is_free("127.0.0.1", port)


def test_an_address_of_another_machine_is_no_free_port() -> None:
    assert not port_is_free("203.0.113.1", 8000)
